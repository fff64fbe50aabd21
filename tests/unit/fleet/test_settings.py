"""Settings: where they come from and what they are when nobody sets them."""

import ast
import inspect
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

import fleet.settings
from fleet.settings import Settings

SELF_EVIDENT = {"temporal_namespace", "temporal_tls", "temporal_tls_key", "host_labels"}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith("HOLDFAST_"):
            monkeypatch.delenv(name)
    (tmp_path / "cwd").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))


def test_defaults_are_those_of_the_outside_surface(tmp_path: Path) -> None:
    s = Settings()
    assert s.home == tmp_path / "home"
    assert (s.port, s.temporal_ui_port, s.temporal_namespace) == (8480, 8233, "default")
    assert s.server_url == "http://127.0.0.1:8480"
    assert s.effective_database_url == f"sqlite:///{tmp_path / 'home' / 'holdfast.db'}"
    assert s.embedded_temporal
    assert s.bind == "127.0.0.1", "nothing listens to the network unless somebody asks for it"


def test_home_is_in_the_users_home_folder_when_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in (None, ""):
        monkeypatch.delenv("HOLDFAST_HOME", raising=False)
        if value is not None:
            monkeypatch.setenv("HOLDFAST_HOME", value)
        assert fleet.settings.default_home() == tmp_path / ".holdfast"


def test_environment_goes_before_files_and_the_working_directory_before_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "holdfast.toml").write_text(
        'port = 1001\ntemporal_port = 1002\nhost_name = "home"\n[host_labels]\nzone = "a"\n'
    )
    (tmp_path / "cwd" / "holdfast.toml").write_text("port = 2001\ntemporal_port = 2002\n")
    monkeypatch.setenv("HOLDFAST_PORT", "3001")
    s = Settings()
    assert (s.port, s.temporal_port, s.host_name, s.host_labels) == (3001, 2002, "home", {"zone": "a"})


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "0"), ("PORT", "65536"), ("PORT", "http"), ("HOST_RESERVED_RAM_BYTES", "-1")]
)
def test_impossible_value_is_refused_by_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"HOLDFAST_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_secrets_do_not_show_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"API_KEY", "MASTER_KEY", "TEMPORAL_API_KEY", "HOST_TOKEN"}
    for name in secrets:
        monkeypatch.setenv(f"HOLDFAST_{name}", "hunter2")
    s = Settings()
    assert s.master_key is not None
    assert s.master_key.get_secret_value() == "hunter2"
    assert "hunter2" not in f"{s!r} {s} {s.model_dump()} {s.model_dump_json()}"


def test_external_temporal_is_used_when_its_address_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_TEMPORAL_ADDRESS", "temporal.example:7233")
    monkeypatch.setenv("HOLDFAST_TEMPORAL_UI_URL", "https://temporal.example/")
    s = Settings()
    assert not s.embedded_temporal
    assert s.effective_temporal_address == "temporal.example:7233"
    expected = "https://temporal.example/namespaces/default/workflows/deployment%2Fa.b"
    assert s.workflow_url("deployment/a.b") == expected


def test_every_setting_is_explained_where_it_is_defined() -> None:
    body = ast.parse(inspect.getsource(Settings)).body[0]
    assert isinstance(body, ast.ClassDef)
    named = [
        (s.target.id, following)
        for s, following in zip(body.body, [*body.body[1:], None], strict=True)
        if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
    ]
    assert len(named) == len(Settings.model_fields)
    unexplained = {name for name, following in named if not _is_text(following)}
    assert unexplained <= SELF_EVIDENT


def _is_text(statement: ast.stmt | None) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def test_ports_of_engines_are_clear_of_what_others_listen_on() -> None:
    first, last = Settings().host_ports
    assert (first, last) == (20000, 21999)
    own = (8480, 8481, 8482, 8233, 8234)
    assert not any(first <= port <= last for port in own)
    assert last < 32768, "from there on Linux hands out ports by itself"
    assert Settings(host_port_range="1024-1024").host_ports == (1024, 1024)


@pytest.mark.parametrize(
    "wrong",
    [
        {"host_port_range": "20000"},
        {"host_port_range": "20000-"},
        {"host_port_range": "21000-20000"},
        {"host_port_range": "1000-2000"},
        {"host_port_range": "60000-65536"},
        {"host_port_range": "8000-9000"},
        {"host_port_range": "20000-20100", "port": 20050},
        {"host_port_range": "20000-20100", "host_port": 20100},
    ],
    ids=str,
)
def test_a_range_of_ports_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="host_port_range"):
        Settings(**wrong)  # type: ignore[arg-type]
