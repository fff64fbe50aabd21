"""How an engine of this host ended, in the words that Temporal and people hear."""

from dataclasses import dataclass

from fleet.engines.adapter import EngineAdapter
from fleet.engines.failures import classify, known_classes
from fleet.instances import EngineExit, Remedy
from worker_host.engine_log import EngineLogs, scrub
from worker_host.probes import Refused, StartTimeout
from worker_host.records import EngineRecord
from worker_host.runtime.protocol import Exit
from worker_host.watch import Hung


@dataclass(frozen=True)
class Endings:
    logs: EngineLogs
    adapter: EngineAdapter
    record: EngineRecord
    secrets: tuple[str, ...]
    """Values that no text may contain."""

    def ended(self, ended: Exit) -> EngineExit:
        """By itself; how, and its log, say why."""
        found = classify(ended.code, self._tail(), served=self._served, extra=self.adapter.failure_patterns)
        if not ended.out_of_memory:
            return found
        known = known_classes()["container_oom"]
        at_most = known.at_most if not self._served else None
        named = {"failure_class": known.name, "hint": known.hint, "remedy": known.remedy, "at_most": at_most}
        return found.model_copy(update=named)

    def given_up(self, why: StartTimeout | Refused | Hung) -> EngineExit:
        """We killed it."""
        if isinstance(why, Refused):
            hint = f"It is healthy, but {why}. The model and the engine's arguments do not go together."
            return self._killed("refused", hint, Remedy.NEVER)
        name = "hung" if isinstance(why, Hung) else "slow"
        return self._killed(name, f"{why}. {known_classes()[name].hint}", Remedy.HERE)

    def never_started(self, why: str) -> EngineExit:
        found = classify(None, why, served=False, extra=self.adapter.failure_patterns)
        return found.model_copy(update={"log_tail": scrub(why, self.secrets), "hint": found.hint or why})

    def stopped_unasked(self) -> EngineExit:
        hint = "its host stopped it: the control plane did not know it as placed there"
        return EngineExit(exit_code=None, failure_class="unwanted", hint=hint, served=self._served)

    def _killed(self, name: str, hint: str, remedy: Remedy) -> EngineExit:
        return EngineExit(
            exit_code=None,
            failure_class=name,
            hint=hint,
            remedy=remedy,
            at_most=known_classes()[name].at_most if name in known_classes() else None,
            log_tail=self._tail(),
            served=self._served,
        )

    def _tail(self) -> str:
        return self.logs.tail(self.record.launch.instance_id, self.record.attempt, self.secrets)

    @property
    def _served(self) -> bool:
        return self.record.ready_since is not None
