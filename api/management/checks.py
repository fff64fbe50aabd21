"""Checks of a spec that need more than the spec itself: engines and hosts."""

from api.state import Services
from fleet.db.hosts import ReadyHost, ready_hosts
from fleet.engines.catalog import ADAPTERS
from fleet.engines.choice import Offer, choose_engine
from fleet.engines.custom import unknown_placeholders
from fleet.errors import InvalidInput
from fleet.host_client import FileFacts
from fleet.sizing.facts import ModelFacts
from fleet.specs import DeploymentSpec


async def check_spec(services: Services, spec: DeploymentSpec) -> tuple[str, str]:
    """(engine, version) to run it with. Raises InvalidInput naming the field and the remedy."""
    if spec.model.source != "local":
        raise InvalidInput(
            f"models of {spec.model.source} can be evaluated, but not deployed from there",
            field="spec.model.source",
            hint="download it to the hosts and name its path: model.source 'local'",
        )
    _check_custom(spec)
    selector = spec.placement.host_selector.items()
    ready = await services.database.aread(lambda s: ready_hosts(s, ""))
    hosts = [h for h in ready if all(h.view.labels.get(k) == v for k, v in selector)]
    facts = await services.files.on([h.address for h in hosts], spec.model.path or "")
    adapter = ADAPTERS[_engine(spec, hosts, [f.model for f in facts.values() if f is not None and f.model is not None])]
    for index, remedy in adapter.refuse(spec.engine_args).items():
        raise InvalidInput(
            f"{spec.engine_args[index]!r} is set by Holdfast itself",
            field=f"spec.engine_args.{index}",
            hint=remedy,
        )
    version = _version(adapter.name, spec.engine_version, adapter.default_version, hosts)
    _check_file(spec, hosts, {k: v for k, v in facts.items() if v is not None})
    return adapter.name, version


def _check_custom(spec: DeploymentSpec) -> None:
    for index, remedy in unknown_placeholders(spec.custom.command if spec.custom is not None else ()).items():
        raise InvalidInput(
            "holds a placeholder that nothing fills in", field=f"spec.custom.command.{index}", hint=remedy
        )


def _engine(spec: DeploymentSpec, hosts: list[ReadyHost], models: list[ModelFacts]) -> str:
    """For the hosts that are there; where none of them can run the model, for such as may come."""
    facts = models[0] if models else None
    offers = [
        Offer(h.view.name, h.view.engines, tuple(g.gpu_class for g in h.view.gpus), h.view.runtimes) for h in hosts
    ]
    choice = choose_engine(facts, spec, offers)
    if not choice.engine:
        choice = choose_engine(facts, spec, ())
    if not choice.engine:
        raise InvalidInput(
            "no engine can run this model: " + "; ".join(f"{name}: {why}" for name, why in choice.reasons.items()),
            field="spec.engine",
            hint="use another engine or version, or another form of the model",
        )
    return choice.engine


def _version(engine: str, asked: str | None, default: str, hosts: list[ReadyHost]) -> str:
    """The version to pin; empty means whatever build a host has of its own."""
    offered = {b.version for h in hosts for b in h.view.engines if b.engine == engine}
    if asked is None:
        return default if not offered or default in offered else ""
    if asked != default and asked not in offered:
        known = ", ".join(sorted(offered | {default}))
        raise InvalidInput(
            f"no host offers {engine} {asked}",
            field="spec.engine_version",
            hint=f"leave it out or use one of: {known}",
        )
    return asked


def _check_file(spec: DeploymentSpec, hosts: list[ReadyHost], facts: dict[str, FileFacts]) -> None:
    """Refuse a model that no host has. Hosts that do not answer get the benefit of the doubt."""
    if not facts or len(facts) < len(hosts):
        return
    path = spec.model.path or ""
    names = ", ".join(sorted(h.view.name for h in hosts))
    if not any(f.exists for f in facts.values()):
        raise InvalidInput(
            f"no host has the file {path!r} (asked: {names})",
            field="spec.model.path",
            hint="copy the model there, or name an absolute path or one relative to the host's models folder",
        )
    there = [f for f in facts.values() if f.exists]
    if spec.engine != "custom" and all(f.model is None and f.model_error for f in there):
        raise InvalidInput(
            f"{there[0].model_error} (asked: {names})",
            field="spec.model.path",
            hint=there[0].model_hint or "name a GGUF file, or a folder with config.json and safetensors files",
        )
    if not any(f.readable for f in there):
        raise InvalidInput(
            f"{path!r} exists but is not a model that a host can read (asked: {names})",
            field="spec.model.path",
            hint="name a file, or a folder with a model, and let the host's user read it",
        )
