"""Cards that Holdfast knows by name. Pure; the data is part of the package.

``memory_mib`` is what the vendor's tool says of a whole card (NVML with ECC on, ``amd-smi``, ``npu-smi``), not the
round number of the datasheet; drivers differ by some MiB. Compute capabilities and links are those of the vendors'
datasheets.
"""

import json
import re
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

from pydantic import Field

from fleet.inventory import AcceleratorKind
from fleet.model import Record
from fleet.sizing.sizing import GpuClass

_PREFIXES = re.compile(r"^(nvidia|amd|huawei|tesla|geforce|instinct)+")


class GpuModel(Record):
    name: str
    vendor: AcceleratorKind
    reported_as: str
    """By the vendor's tool, and so by hosts that have one."""
    memory_mib: int = Field(gt=0)
    compute_capability: str
    """As ``Gpu.compute_capability``."""
    nvlink: bool
    """Cards of one host reach each other over NVLink or the vendor's own kind of it, where there are several."""
    aliases: tuple[str, ...] = ()

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib << 20

    @property
    def gpu_class(self) -> GpuClass:
        return GpuClass(
            kind=self.vendor,
            name=self.reported_as,
            memory_bytes=self.memory_bytes,
            compute_capability=self.compute_capability,
        )


@cache
def gpu_models() -> dict[str, GpuModel]:
    """By name."""
    document = json.loads(files("fleet.catalog").joinpath("gpu_models.json").read_text())
    models = (GpuModel.model_validate(dict(zip(document["columns"], row, strict=True))) for row in document["rows"])
    return {model.name: model for model in models}


def gpu_model(name: str) -> GpuModel | None:
    """By its name, an alias, or what the vendor's tool calls it; capitals, blanks and the vendor's name aside."""
    return _by_key().get(_key(name))


def similar(name: str) -> list[str]:
    """Names of models that may have been meant, best first; a few at most."""
    keys = get_close_matches(_key(name), _by_key(), n=6, cutoff=0.5)
    return list(dict.fromkeys(_by_key()[key].name for key in keys))[:3]


@cache
def _by_key() -> dict[str, GpuModel]:
    return {
        _key(name): model for model in gpu_models().values() for name in (*model.aliases, model.reported_as, model.name)
    }


def _key(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return _PREFIXES.sub("", plain)
