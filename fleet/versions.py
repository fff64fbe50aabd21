"""Which versions of hosts and control plane understand each other."""

import re

_RELEASE = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})(?:[.\-+a-z].*)?", re.IGNORECASE)


def why_not(ours: str, theirs: str) -> str:
    """Why a host of version ``theirs`` cannot work with a control plane of version ``ours``; empty: it can.

    The same minor release, or the one before or after it: so either side can be upgraded first.
    """
    mine, other = _release(ours), _release(theirs)
    if other is None:
        return f"the host does not say which version of Holdfast it is ({theirs[:60]!r}): install {ours} there"
    if mine is None:
        raise ValueError(f"{ours!r} is no version")
    if mine[0] == other[0] and abs(mine[1] - other[1]) <= 1:
        return ""
    what, remedy = (
        ("older", f"upgrade the host to {ours}")
        if other < mine
        else ("newer", f"upgrade the control plane to {theirs}")
    )
    return (
        f"the host runs Holdfast {theirs[:60]}, more than one minor release {what} than the control plane ({ours}): "
        f"{remedy[:120]}"
    )


def _release(version: str) -> tuple[int, int] | None:
    found = _RELEASE.fullmatch(version.strip())
    return (int(found[1]), int(found[2])) if found else None
