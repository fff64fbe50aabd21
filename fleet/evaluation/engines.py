"""Which engine would run a model, and why the others would not. Pure."""

from dataclasses import dataclass

import numpy as np

from fleet.engines.choice import EngineChoice, Offer, choose_engine
from fleet.evaluation.answer import EngineVerdict
from fleet.placement.fleet import Fleet
from fleet.sizing.facts import Format, ModelFacts
from fleet.sizing.sizing import GpuClass
from fleet.specs import DeploymentSpec


@dataclass(frozen=True)
class Verdicts:
    all: tuple[EngineVerdict, ...]
    engine: str
    """Of which sizes are told: the chosen one, else the one that comes nearest."""
    version: str
    """To pin, and as which it is sized; empty: whatever build a host has."""
    can_run: bool


def judge(spec: DeploymentSpec, facts: ModelFacts, fleet: Fleet | None, refused: dict[str, list[str]]) -> Verdicts:
    """``fleet`` None: any engine can be brought to machines that are rented. ``refused``: arguments of the spec that
    an engine does not take, in words, by engine."""
    choice = choose_engine(facts, spec, offers_of(fleet) if fleet is not None else ())
    engine = choice.engine or _nearest(spec, facts)
    version = choice.version if choice.engine else spec.engine_version or ""
    wrong = refused.get(engine, [])
    return Verdicts(
        all=tuple(_verdict(name, choice, version, wrong) for name in _order(choice)),
        engine=engine,
        version=version,
        can_run=bool(choice.engine) and not wrong,
    )


def offers_of(fleet: Fleet) -> tuple[Offer, ...]:
    """One for each different pair of software and classes of cards: hosts of a fleet differ little."""
    present = fleet.present_classes()
    has = np.zeros((fleet.host.size, len(present)), np.bool_)
    for column, (code, _) in enumerate(present):
        has[fleet.gpu["host"][fleet.class_cards(code)], column] = True
    kinds = np.unique(np.column_stack([fleet.host["software"], has])[fleet.host["alive"]], axis=0)
    return tuple(
        _offer(fleet, int(row[0]), [c for (_, c), here in zip(present, row[1:], strict=True) if here]) for row in kinds
    )


def _offer(fleet: Fleet, software: int, gpus: list[GpuClass]) -> Offer:
    there = fleet.software[software]
    return Offer(host="", builds=there.engines, gpus=tuple(gpus), runtimes=there.runtimes)


def _order(choice: EngineChoice) -> list[str]:
    return [*([choice.engine] if choice.engine else []), *choice.reasons]


def _verdict(name: str, choice: EngineChoice, version: str, wrong: list[str]) -> EngineVerdict:
    if name != choice.engine:
        reasons = [choice.reasons[name]]
        return EngineVerdict(engine=name, version="", can_run=False, chosen=False, reasons=reasons)
    return EngineVerdict(engine=name, version=version, can_run=not wrong, chosen=True, reasons=wrong)


def _nearest(spec: DeploymentSpec, facts: ModelFacts) -> str:
    if spec.engine != "auto":
        return spec.engine
    return "llama_cpp" if facts.format is Format.GGUF else "vllm"
