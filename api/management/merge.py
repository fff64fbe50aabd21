"""Changing a spec: JSON merge patch (RFC 7396), and values that are kept sealed."""

from typing import Any

from fleet.access.sealing import MASK, CannotOpen, Sealer
from fleet.errors import InvalidInput
from fleet.specs import DeploymentSpec


def merge_patch(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def seal_env(master: Sealer, spec: DeploymentSpec, known: dict[str, str]) -> DeploymentSpec:
    """``spec`` with the values of ``env`` sealed. The mask, or the same value again, keeps the sealed one we have.

    (A fresh seal of the same value would look like a change and replace every engine.)
    """
    return spec.model_copy(update={"env": {n: _sealed(master, n, v, known.get(n)) for n, v in spec.env.items()}})


def sealed_again(master: Sealer, value: str, known: str) -> str:
    """``value`` sealed; ``known``, if that is the same value sealed before."""
    return known if known and _opens_to(master, known) == value else master.seal(value)


def _sealed(master: Sealer, name: str, value: str, known: str | None) -> str:
    if value == MASK:
        if known is None:
            raise InvalidInput(f"{name} has no value yet", field=f"spec.env.{name}", hint="send the value itself")
        return known
    return sealed_again(master, value, known or "")


def _opens_to(master: Sealer, sealed: str) -> str | None:
    try:
        return master.open(sealed)
    except CannotOpen:
        return None
