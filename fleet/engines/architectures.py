"""Which architectures a version of an engine knows. Pure."""

import json
from functools import cache
from importlib.resources import files


@cache
def known(engine: str, version: str) -> frozenset[str]:
    """Empty: nobody has listed those of this version."""
    listed = json.loads(files("fleet.engines").joinpath("architectures.json").read_text()).get(engine, {})
    if listed.get("version") != version.partition("+")[0]:
        return frozenset()
    return frozenset(name for line in listed["names"] for name in line.split())
