"""What people send: good specs pass, bad ones are refused with the field at fault."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fleet.specs import MAX_REPLICAS, DeploymentCreate, DeploymentSpec

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def create(name: object = "m", labels: object = None, **spec: object) -> DeploymentCreate:
    body: dict[str, Any] = {"name": name, "spec": {"model": {"path": "model.gguf"}} | spec}
    return DeploymentCreate.model_validate(body if labels is None else body | {"labels": labels})


def fields_at_fault(*args: object, **spec: object) -> list[str]:
    with pytest.raises(ValidationError) as refused:
        create(*args, **spec)
    return [".".join(str(part) for part in error["loc"]) for error in refused.value.errors()]


def test_the_least_that_is_needed_is_a_name_and_a_model() -> None:
    made = create()
    assert (made.spec.replicas, made.spec.engine, made.spec.runtime, made.labels) == (1, "auto", "auto", {})


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"replica": 2}, "spec.replica"),
        ({"replicas": -1}, "spec.replicas"),
        ({"replicas": MAX_REPLICAS + 1}, "spec.replicas"),
        ({"replicas": 10**9}, "spec.replicas"),
        ({"replicas": 1.5}, "spec.replicas"),
        ({"replicas": "many"}, "spec.replicas"),
        ({"replicas": None}, "spec.replicas"),
        ({"engine": "no_such_engine"}, "spec.engine"),
        ({"engine_version": "../1"}, "spec.engine_version"),
        ({"engine_version": ""}, "spec.engine_version"),
        ({"engine_args": "--threads 2"}, "spec.engine_args"),
        ({"engine_args": [""]}, "spec.engine_args.0"),
        ({"engine_args": ["-v"] * 257}, "spec.engine_args"),
        ({"env": {"1A": "x"}}, "spec.env.1A.[key]"),
        ({"env": {"A": "x" * 8193}}, "spec.env.A"),
        ({"max_model_len": 0}, "spec.max_model_len"),
        ({"concurrency": 0}, "spec.concurrency"),
        ({"resources": {"cpu_threads": 0}}, "spec.resources.cpu_threads"),
        ({"resources": {"memory_bytes": -1}}, "spec.resources.memory_bytes"),
        ({"resources": {"memory_bytes": 1 << 63}}, "spec.resources.memory_bytes"),
        ({"placement": {"gpus_per_replica": -1}}, "spec.placement.gpus_per_replica"),
        ({"placement": {"nowhere": 1}}, "spec.placement.nowhere"),
        ({"health": {"start_timeout_s": 0}}, "spec.health.start_timeout_s"),
        ({"runtime": "vm"}, "spec.runtime"),
        ({"model": {}}, "spec.model.path"),
        ({"model": {"path": ""}}, "spec.model.path"),
        ({"model": {"path": "a\x00b"}}, "spec.model.path"),
        ({"model": {"path": "x" * 4097}}, "spec.model.path"),
        ({"model": {"source": "ftp", "path": "m"}}, "spec.model.source"),
        ({"model": "model.gguf"}, "spec.model"),
    ],
)
def test_wrong_field_is_named(spec: dict[str, Any], field: str) -> None:
    assert fields_at_fault(**spec) == [field]


@given(st.lists(st.sampled_from(["..", "a", "b.gguf", ""]), min_size=1))
def test_path_that_climbs_out_is_refused(parts: list[str]) -> None:
    path = "/".join([*parts, "..", *parts])
    assert fields_at_fault(model={"path": path}) == ["spec.model.path"]


@pytest.mark.parametrize("path", ["model.gguf", "/models/a/b.gguf", "a..b/..c/model...gguf", "mödel.gguf"])
def test_plain_paths_pass_as_they_are(path: str) -> None:
    assert create(model={"path": path}).spec.model.path == path


@given(
    st.text(LETTERS, min_size=1, max_size=1),
    st.text(LETTERS + ".-", max_size=61),
    st.text(LETTERS, min_size=1, max_size=1),
)
def test_good_names_pass(first: str, middle: str, last: str) -> None:
    for name in (first, first + middle + last):
        assert create(name).name == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", ".a", "a.", "A", "a_b", "a/b", "a b", "ä", "a\n", "a" * 64, 7, None, "../a"]
)
def test_bad_names_are_refused(name: object) -> None:
    assert fields_at_fault(name) == ["name"]


@given(st.text())
def test_every_name_that_passes_can_stand_in_ids_paths_and_urls(name: str) -> None:
    try:
        made = create(name).name
    except ValidationError:
        return
    assert 1 <= len(made) <= 63
    assert set(made) <= set(LETTERS + ".-")


@pytest.mark.parametrize(
    "labels",
    [{"": "x"}, {"a b": "x"}, {"a": "x" * 64}, {"a" * 64: "x"}, {f"k{n}": "" for n in range(33)}, []],
)
def test_bad_labels_are_refused(labels: object) -> None:
    assert all(field.startswith("labels") for field in fields_at_fault("m", labels))


def test_all_mistakes_are_named_at_once() -> None:
    assert sorted(fields_at_fault("A", replicas=-1, nonsense=1)) == ["name", "spec.nonsense", "spec.replicas"]


def test_errors_say_what_would_be_right() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1000"):
        create(replicas=10**9)
    with pytest.raises(ValidationError, match="without '\\.\\.'"):
        create(model={"path": "../m"})


def test_spec_survives_being_written_and_read_again() -> None:
    made = create(replicas=3, env={"A": "b"}, engine_args=["-v"], placement={"host_selector": {"a": "b"}})
    assert DeploymentCreate.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    "image",
    [
        "engine",
        "team/engine:1.2",
        "registry.example:5000/team/engine:server-cuda",
        "127.0.0.1:5005/engine@sha256:" + "a" * 64,
        "registry.example/a/b/c_d:x@sha256:" + "0" * 64,
    ],
)
def test_image_may_be_any_that_docker_knows(image: str) -> None:
    spec = DeploymentSpec.model_validate({"model": {"path": "m"}, "runtime": "docker", "container": {"image": image}})
    assert spec.container.image == image


@pytest.mark.parametrize("image", ["", "a b", "-x", "x:", "x@sha256:1", "--privileged", "a/../b", "a\nb", "x" * 600])
def test_image_that_is_none_is_refused(image: str) -> None:
    with pytest.raises(ValidationError, match="image"):
        DeploymentSpec.model_validate({"model": {"path": "m"}, "container": {"image": image}})


def test_process_has_no_container() -> None:
    wanted = {"model": {"path": "m"}, "runtime": "process", "container": {"image": "engine:1"}}
    with pytest.raises(ValidationError, match="runtime to 'docker' or 'auto'"):
        DeploymentSpec.model_validate(wanted)
