"""The ready-made commands by which a machine becomes a host: they are what shells, systemd and clouds can read."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.management.joining import JoinCommands, join_commands, note
from fleet.settings import Settings

TOKEN = "hf-join-abc_-123.AsdF_-x="
SERVER = "https://holdfast.example:8481"


def commands(**changes: Any) -> JoinCommands:
    return join_commands(Settings(**{"relay_url": SERVER, **changes}), TOKEN)


def written(script: str, path: str) -> str:
    """The file that a script writes to ``path`` with a here-document."""
    lines = script.splitlines()
    start = lines.index(f"cat >{path} <<'END'") + 1
    return "\n".join(lines[start : lines.index("END", start)]) + "\n"


def test_process_is_told_the_server_and_the_token() -> None:
    assert shlex.split(commands().process) == ["holdfast", "host", "--server", SERVER, "--token", TOKEN]


@pytest.mark.parametrize("kind", ["process", "container", "systemd"])
def test_shells_can_read_the_commands(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text(getattr(commands(), kind))
    subprocess.run(["sh", "-n", script], check=True, timeout=10)


@pytest.mark.parametrize("gpus", [True, False])
def test_container_gets_the_gpus_where_there_are_any(gpus: bool, tmp_path: Path) -> None:
    """What ``docker`` is called with, by a shell that finds a driver or none."""
    for name in ["docker", *(["nvidia-smi"] if gpus else [])]:
        program = tmp_path / name
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        program.chmod(0o755)
    script = commands(host_image="registry.example/holdfast@sha256:1").container
    shell = shutil.which("sh")
    assert shell is not None
    done = subprocess.run(
        [shell, "-c", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True, timeout=10
    )
    said = done.stdout.splitlines()
    assert said[-2:] == ["registry.example/holdfast@sha256:1", "host"], "`holdfast` is the image's entrypoint"
    assert said[said.index("--user") + 1] == "0", "or the Docker socket is closed to it"
    assert (said[said.index("--gpus") + 1] == "all") if gpus else ("--gpus" not in said)
    assert f"HOLDFAST_SERVER={SERVER}" in said
    assert f"HOLDFAST_HOST_TOKEN={TOKEN}" in said
    assert "/var/run/docker.sock:/var/run/docker.sock" in said


def test_service_keeps_engines_and_its_token_to_itself() -> None:
    script = commands().systemd
    unit = written(script, "/etc/systemd/system/holdfast-host.service")
    assert "KillMode=process" in unit, "or every restart of the host process would end its engines"
    assert TOKEN not in unit
    environment = written(script, "/etc/holdfast/host.env")
    assert environment == f'HOLDFAST_SERVER="{SERVER}"\nHOLDFAST_HOST_TOKEN="{TOKEN}"\n'
    lines = script.splitlines()
    closed = lines.index("install -m 0600 /dev/null /etc/holdfast/host.env")
    assert closed < lines.index("cat >/etc/holdfast/host.env <<'END'"), "before the token is in it"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    unit = written(commands().systemd, "/etc/systemd/system/holdfast-host.service")
    path = tmp_path / "holdfast-host.service"
    path.write_text(unit.replace("/opt/holdfast/bin/holdfast", sys.executable).replace("User=holdfast", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "holdfast-host" in line]
    assert (done.returncode, complaints) == (0, [])


def test_cloud_gets_the_same_script() -> None:
    text = commands().cloud_init
    assert text.startswith("#cloud-config\n")
    data = yaml.safe_load(text)
    [file] = data["write_files"]
    assert file["content"].rstrip() == commands().systemd.rstrip()
    assert file["permissions"] == "0700"
    assert ["sh", file["path"]] in data["runcmd"]


def test_odd_settings_cannot_break_out_of_a_command(tmp_path: Path) -> None:
    odd = commands(relay_url='https://x/$(touch pwned)"`touch pwned`', host_package="/srv/holdfast-0.1.0.whl")
    assert "pip install --quiet /srv/holdfast-0.1.0.whl\n" in odd.systemd
    assert '\\$(touch pwned)\\"\\`touch pwned\\`"' in written(odd.systemd, "/etc/holdfast/host.env")
    program = tmp_path / "holdfast"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    subprocess.run(
        ["sh", "-c", odd.process], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True, timeout=10
    )
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(ValueError, match="host_image"):
        commands(host_image="x; touch pwned")
    with pytest.raises(ValueError, match="host_package"):
        commands(host_package="x; touch pwned")


def test_relay_that_only_listens_to_this_machine_is_noted() -> None:
    assert "HOLDFAST_RELAY_BIND" in note(Settings())
    assert "HOLDFAST_RELAY_BIND" in note(Settings(relay_url="https://localhost:8481"))
    assert note(Settings(relay_url=SERVER)) == ""
    assert note(Settings(relay_bind="10.0.0.1")) == ""
