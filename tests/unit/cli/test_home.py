"""What ``holdfast up`` keeps in its home."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fleet.cli import home as home_of_up
from fleet.cli.app import run
from fleet.cli.up import host_name, local_url
from fleet.settings import Settings


def test_a_new_home_is_closed_to_others_and_an_old_one_stays_as_it_is(tmp_path: Path) -> None:
    home_of_up.prepare(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "models").is_dir()
    old = tmp_path / "old"
    old.mkdir()
    old.chmod(0o755)
    home_of_up.prepare(old)
    assert old.stat().st_mode & 0o777 == 0o755


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(home_of_up.HomeUnusable, match="file"):
        home_of_up.prepare(tmp_path / "file" / "home")


def test_keys_are_made_once_and_only_for_their_owner(home: Path) -> None:
    settings = Settings(home=home)
    key = home_of_up.make_keys(settings)
    assert key.startswith("hf-key-")
    assert home_of_up.make_keys(settings) == key
    for name in ("admin_key", "master_key"):
        assert (home / name).stat().st_mode & 0o777 == 0o600


def test_a_second_up_on_the_same_home_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home_of_up.prepare(home)
    with home_of_up.only_one(home):
        (home / "up.json").write_text('{"pid": 4711, "children": {}}')
        assert home_of_up.is_held(home)
        assert run(["up"]) == 1
    assert "4711" in capsys.readouterr().err
    assert not home_of_up.is_held(home)


def test_children_of_an_up_that_was_killed_are_ended_first(home: Path) -> None:
    left = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    other = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    started = psutil.Process(left.pid).create_time()
    children = f'{{"api": {{"pid": {left.pid}, "started_at": {started}}}, "host": {{"pid": null}}'
    # A pid that was given to another process since must not be touched.
    children += f', "controller": {{"pid": {other.pid}, "started_at": {started - 1000}}}}}'
    (home / "up.json").write_text(f'{{"pid": 1, "children": {children}}}')
    said: list[str] = []
    home_of_up.end_leftovers(home, said.append)
    try:
        assert not psutil.pid_exists(left.pid)
        assert other.poll() is None
        assert len(said) == 1
    finally:
        other.kill()
        other.wait()


def test_a_damaged_record_is_no_obstacle(home: Path) -> None:
    (home / "up.json").write_text("{")
    said: list[str] = []
    home_of_up.end_leftovers(home, said.append)
    assert said == []


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8480"),
        ("0.0.0.0", "http://127.0.0.1:8480"),
        ("::", "http://[::1]:8480"),
        ("10.0.0.5", "http://10.0.0.5:8480"),
    ],
)
def test_up_reaches_its_own_api_wherever_it_listens(bind: str, url: str) -> None:
    assert local_url(Settings(bind=bind, port=8480)) == url


def test_a_host_name_has_only_the_characters_that_it_may_have() -> None:
    assert host_name(Settings(host_name="gpu box/7")) == "gpu-box-7"
    assert host_name(Settings(host_name="...")) == "host"
    assert host_name(Settings())


def test_an_unreachable_database_is_said_plainly(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unused_port: int
) -> None:
    for name in ("PORT", "TEMPORAL_PORT", "TEMPORAL_UI_PORT"):
        monkeypatch.setenv(f"HOLDFAST_{name}", str(_free_port()))
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", f"postgresql://nobody@127.0.0.1:{unused_port}/none")
    assert run(["up"]) == 1
    assert "HOLDFAST_DATABASE_URL" in capsys.readouterr().err
    assert list((home / "logs").iterdir()) == []


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
