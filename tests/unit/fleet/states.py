"""Durable states with every field drawn, so that a new field is tested without being named."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import BaseModel

from fleet.deployments import Deployment, InstanceView
from fleet.hosts import Host
from fleet.instances import Instance
from fleet.model import Wire
from fleet.resync import news_of
from fleet.specs import (
    CanarySpec,
    ContainerSpec,
    CustomEngine,
    DeploymentSpec,
    HealthSpec,
    KvCacheSpec,
    LoraSpec,
    ModelSource,
    PlacementSpec,
    RestartSpec,
    RolloutSpec,
    SpeculativeSpec,
)

BORN = datetime(2026, 1, 1, tzinfo=UTC)
_WIRE: dict[type[Wire], list[Wire]] = {
    ContainerSpec: [ContainerSpec(), ContainerSpec(image="own:1", network="host", shm_bytes=1 << 30, host_ipc=True)],
    PlacementSpec: [PlacementSpec(), PlacementSpec(host_selector={"a": "b"}, gpus_per_replica=2, gpu_types=["H100"])],
    KvCacheSpec: [KvCacheSpec(), KvCacheSpec(dtype="fp8", offload_bytes=1 << 30)],
    SpeculativeSpec: [SpeculativeSpec(method="ngram"), SpeculativeSpec(method="eagle3", tokens=2, model="d")],
    LoraSpec: [LoraSpec(name="a", path="b")],
    CustomEngine: [CustomEngine(command=["serve", "{{port}}"])],
    RestartSpec: [RestartSpec(), RestartSpec(max_failures=0, window_s=7, failures_per_host=1)],
    DeploymentSpec: [
        DeploymentSpec(model=ModelSource(path="m.gguf")),
        DeploymentSpec(
            model=ModelSource(path="/models/other.gguf"),
            replicas=3,
            engine_args=["--flash-attn", "on"],
            env={"TOKEN": "sealed:v1:abc"},
            max_model_len=512,
            health=HealthSpec(start_timeout_s=5),
            restart=RestartSpec(max_failures=1),
            rollout=RolloutSpec(strategy="canary", canary=CanarySpec(weight=10, max_latency_ratio=None)),
        ),
    ],
}
_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    NoneType: st.none(),
    bool: st.booleans(),
    int: st.integers(0, 2**53),
    float: st.floats(0, 1),
    str: st.text(max_size=12),
    datetime: st.timedeltas(timedelta(0), timedelta(days=1000)).map(lambda since: BORN + since),
    timedelta: st.timedeltas(timedelta(0), timedelta(days=400)),
}


def _of(annotation: Any) -> st.SearchStrategy[Any]:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is not None:
        return _of_generic(origin, arguments)
    if issubclass(annotation, Enum):
        return st.sampled_from(list(annotation))
    if annotation in _WIRE:
        return st.sampled_from(_WIRE[annotation])
    assert issubclass(annotation, BaseModel), f"say how a {annotation} is drawn"
    return every(annotation)


def _of_generic(origin: Any, arguments: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    if origin is Annotated:
        return _of(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, UnionType):
        return st.one_of(*map(_of, arguments))
    if origin is dict:
        return st.dictionaries(_of(arguments[0]), _of(arguments[1]), max_size=2)
    if origin is list:
        return st.lists(_of(arguments[0]), max_size=2)
    assert origin is tuple, f"say how a {origin} is drawn"
    if arguments[-1] is Ellipsis:
        return st.lists(_of(arguments[0]), max_size=2).map(tuple)
    return st.tuples(*map(_of, arguments))


def every(model: type[BaseModel], **known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """All fields at random, but those that are ``known``."""
    fields = {name: _of(f.annotation) for name, f in model.model_fields.items() if name not in known}
    build: Callable[..., Any] = model.model_validate
    return st.fixed_dictionaries(fields | known).map(build)


def instances(instance_id: str = "m/1-a") -> st.SearchStrategy[Instance]:
    deployment = instance_id.split("/", maxsplit=1)[0]
    return every(Instance, instance_id=st.just(instance_id), deployment=st.just(deployment))


def hosts() -> st.SearchStrategy[Host]:
    return every(Host, projection=st.integers(1, 2**53), registrations=st.integers(1, 9))


@st.composite
def deployments(draw: st.DrawFn) -> tuple[Deployment, list[Instance]]:
    """One, and its instances as they are; it has heard all that they said."""
    there = [draw(instances(f"m/{slot}-a")) for slot in range(draw(st.integers(0, 3)))]
    views = {i.instance_id: draw(_views(i)) for i in there}
    made: Deployment = draw(every(Deployment, name=st.just("m"), instances=st.just(views)))
    return made, there


def _views(instance: Instance) -> st.SearchStrategy[InstanceView]:
    """What a deployment knows of it, with whatever only the deployment knows."""
    told = news_of(instance).model_dump()
    same = {name: st.just(told[name]) for name in InstanceView.model_fields if name in told}
    same |= {name: st.just(getattr(instance, name)) for name in ("slot", "launch", "stopping")}
    drawn: st.SearchStrategy[InstanceView] = every(InstanceView, **same)
    return drawn
