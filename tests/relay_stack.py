"""As much of a Holdfast as hosts see: Temporal, a controller, the relay; and hosts that tests hold in their hands."""

from pathlib import Path

import httpx
from sqlmodel import select

from fleet.access.keys import master_sealer_of
from fleet.db import authority, join_tokens
from fleet.db.migrate import upgrade
from fleet.db.session import Database
from fleet.db.tables import AuditRow, HostRow
from fleet.join import JoinToken
from tests.raw_host import RawHost
from tests.stack import Stack, eventually


class RelayStack(Stack):
    """Without an API: what is in the database is looked at there."""

    def __init__(self, folder: Path, **env: str) -> None:
        super().__init__(folder, engines=folder, env=env)
        upgrade(self.settings.effective_database_url)
        self.database = Database(self.settings.effective_database_url)

    def start(self) -> None:
        self.temporal.start()
        self.controller.start()
        self.relay.start()
        try:
            eventually(self._ready, within=30, what="relay and Temporal ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def _ready(self) -> bool:
        return httpx.get(f"{self.settings.relay_for_gateways}/healthz", trust_env=False).is_success

    def stop(self) -> None:
        super().stop()
        self.database.close()

    @property
    def authority(self) -> authority.Authority:
        return authority.ensure(self.database, master_sealer_of(self.settings))

    def token(self, max_uses: int = 1, ttl_s: int = 600) -> str:
        new = join_tokens.new_token("test", ttl_s, max_uses)
        secret = new.secret
        self.database.write(lambda s: join_tokens.add(s, new.row))
        return str(JoinToken(secret=secret, pin=self.authority.ca.pin))

    async def new_host(self, name: str = "raw", **registration: object) -> RawHost:
        host = await RawHost.join(self.settings.relay_for_hosts, self.token(), name)
        await host.register(**registration)
        return host

    def row(self, host_id: str) -> HostRow:
        return self.database.read(lambda s: s.get_one(HostRow, host_id))

    def audited(self, actor: str = "", action: str = "") -> list[AuditRow]:
        rows = self.database.read(lambda s: s.exec(select(AuditRow)).all())
        return [r for r in rows if actor in ("", r.actor) and action in ("", r.action)]

    def metric(self, name: str, **labels: str) -> float:
        """0 while nothing of it was counted."""
        wanted = {f'{k}="{v}"' for k, v in labels.items()}
        lines = httpx.get(f"{self.settings.relay_for_gateways}/metrics", trust_env=False).text.splitlines()
        found = [
            li
            for li in lines
            if li.startswith(name) and wanted <= set(li[len(name) :].strip("{").split("}")[0].split(","))
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)
