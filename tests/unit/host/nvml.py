"""Machines with NVIDIA cards that are not there: our own driver library, built with gcc, under the real client."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from fleet.inventory import Gpu, Inventory
from fleet.telemetry import HostStatus

SOUND = {
    "name": "NVIDIA H200",
    "memory": 141 << 10,
    "used": 500,
    "cc": "9 0",
    "ecc": 0,
    "rows": "0 0 0 0",
    "temperature": 41,
    "utilization": 25,
    "power": 120_500,
    "power_limit": 700_000,
}
"""Memory in MiB, power in mW."""
_GPUS = TypeAdapter(tuple[Gpu, ...])

DETECT = """
from pydantic import TypeAdapter
from fleet.inventory import Gpu
from worker_host.detect.nvidia import Nvidia
print(TypeAdapter(tuple[Gpu, ...]).dump_json(tuple(card.gpu for card in Nvidia().look().cards)).decode())
"""


def card(number: int, *lines: str, **changes: object) -> str:
    """One card of a machine. ``lines``: such that may come several times, and MIG instances after them."""
    bus = f"00000000:{0x10 + number:02X}:00.0"
    facts = SOUND | {"uuid": f"GPU-{number}", "pci": bus, "minor": number, "numa": number // 4} | changes
    said = [f"{key} = {value}" for key, value in facts.items() if value is not None]
    return "\n".join(["[card]", *said, *lines])


def instance(uuid: str, memory: int, profile: str, used: int = 0, *lines: str, **changes: object) -> str:
    facts = {"uuid": uuid, "name": f"NVIDIA H100 80GB HBM3 MIG {profile}", "memory": memory, "used": used} | changes
    return "\n".join(["[mig]", *(f"{key} = {value}" for key, value in facts.items()), *lines])


@dataclass(frozen=True)
class Nvml:
    """A folder with the library; NVML is looked up by name, so only a new process can be given it."""

    folder: Path
    machine: Path

    def has(self, *cards: str, driver: str = "575.57.08", cuda: int = 12_090, **system: object) -> None:
        """From now on this is what is in the machine."""
        lines = [f"driver = {driver}", f"cuda = {cuda}", *(f"{key} = {value}" for key, value in system.items())]
        temporary = self.machine.with_suffix(".new")
        temporary.write_text("\n".join([*lines, *cards, ""]))
        temporary.replace(self.machine)

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "LD_LIBRARY_PATH": str(self.folder), "FAKE_NVML": str(self.machine)}

    def run(self, code: str, *args: str) -> str:
        command = [sys.executable, "-c", code, *args]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def detected(self) -> tuple[Gpu, ...]:
        return _GPUS.validate_json(self.run(DETECT))


def build(folder: Path) -> Path:
    """The library."""
    source = Path(__file__).with_name("fake_nvml.c")
    command: list[str | Path] = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o"]
    subprocess.run([*command, folder / "libnvidia-ml.so.1", source], check=True)
    return folder


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not here; tests/system.sh installs it where it can")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path) -> Nvml:
    made = Nvml(nvml_library, tmp_path / "machine.txt")
    made.has()
    return made


STATUS = """
import json, sys
from pathlib import Path
from fleet.settings import Settings
from fleet.telemetry import EngineStatus
from worker_host.gpu_owners import OwnEngine
from worker_host.telemetry import Sources, Telemetry

home, engines = Path(sys.argv[1]), json.loads(sys.argv[2])
own = [
    OwnEngine(
        EngineStatus(instance_id=e["instance"], fence=1),
        frozenset(e["pids"]),
        tuple(e["gpus"]),
        e["memory"],
    )
    for e in engines
]
telemetry = Telemetry(Settings(home=home), "box", home / "hosts" / "box", Sources(engines=lambda: own))
print(telemetry.inventory().model_dump_json())
print(telemetry.take().model_dump_json())
print(telemetry.metrics().decode())
"""


def host_says(nvml: Nvml, home: Path, engines: str = "[]") -> tuple[Inventory, HostStatus, str]:
    """Inventory, status and metrics of a host process that is new. ``engines``: its own, as JSON."""
    inventory, status, metrics = nvml.run(STATUS, str(home), engines).split("\n", 2)
    return Inventory.model_validate_json(inventory), HostStatus.model_validate_json(status), metrics
