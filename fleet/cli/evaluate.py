"""``evaluate``: would a model run, where, how often, and at what price?"""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.cli import output
from fleet.cli.setup import WrongUsage, connect, load_settings

if TYPE_CHECKING:
    from fleet.evaluation.question import Question

Json = dict[str, Any]

_HUBS = {"hf": "huggingface", "ms": "modelscope"}
_NOT_COMPATIBLE = 1


class Ground(StrEnum):
    FLEET = "fleet"
    CATALOG = "catalog"


def evaluate(  # noqa: PLR0917 (options, by name)
    model: Annotated[
        str | None, typer.Option(help="File or folder on a host, hf:owner/name[@rev][#file], or ms:owner/name.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="How many engines.", min=1)] = None,
    engine: Annotated[str | None, typer.Option(help="auto, vllm, sglang, llama_cpp.")] = None,
    engine_arg: Annotated[list[str] | None, typer.Option(help="Argument for the engine; repeat.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Longest context, in tokens.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests at a time per replica.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs per replica; 0: CPU only.")] = None,
    kv_cache_dtype: Annotated[str | None, typer.Option(help="auto, fp8, q8_0, ...")] = None,
    against: Annotated[Ground, typer.Option(help="Hosts that are ready now, or machines to rent.")] = Ground.FLEET,
    inventory: Annotated[str | None, typer.Option(help="Fleet of your own as JSON; '-': stdin.")] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="Deployment or spec as JSON; '-': stdin.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Of the spec; repeat.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Here, without the API: a model of this machine.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="What the memory is for, and the engine's flags.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Would a model run, where, how often, and at what price? Exit code 0 if all replicas would, else 1."""
    from fleet.cli import spec as specs

    document = specs.read_document(file) if file else {}
    spec: Json = dict(document.get("spec") or {})
    if model is not None:
        spec["model"] = model_source(model, local=local)
    if not spec.get("model"):
        raise WrongUsage(
            "name a model", field="--model", hint="--model PATH, --model hf:owner/name or --file spec.json"
        )
    options = {"engine": engine, "max_model_len": max_model_len, "concurrency": concurrency}
    spec |= {name: value for name, value in options.items() if value is not None}
    if engine_arg:
        spec["engine_args"] = [*spec.get("engine_args", []), *engine_arg]
    nested = {"placement.gpus_per_replica": gpus, "kv_cache.dtype": kv_cache_dtype}
    given = [f"{path}={value}" for path, value in nested.items() if value is not None]
    for assignment in [*given, *(assign or ())]:
        specs.assign(spec, assignment)
    body = {"spec": spec, "against": _ground(against, inventory), "labels": document.get("labels") or {}}
    body |= {"replicas": replicas} if replicas is not None else {}
    answer = _here(body) if local else connect().post("/api/v1/evaluations", body)
    _tell(answer, explain=explain, as_json=as_json)
    if not answer["compatible"]:
        raise typer.Exit(_NOT_COMPATIBLE)


def model_source(given: str, *, local: bool) -> Json:
    """``hf:owner/name@rev#file`` and ``ms:…``, else a path: of this machine with ``local``, of hosts without."""
    from pathlib import Path

    from fleet.cli.spec import model_path

    prefix, colon, rest = given.partition(":")
    if not colon or prefix not in _HUBS:
        return {"source": "local", "path": str(Path(given).expanduser().resolve()) if local else model_path(given)}
    rest, _, file = rest.partition("#")
    repo, _, revision = rest.partition("@")
    named = {"repo": repo, "revision": revision, "file": file}
    return {"source": _HUBS[prefix], **{key: value for key, value in named.items() if value or key == "repo"}}


def _ground(against: Ground, inventory: str | None) -> Any:
    if inventory is None:
        return against.value
    if against is Ground.CATALOG:
        raise WrongUsage("either --against catalog or --inventory FILE", field="--inventory")
    from fleet.cli.spec import read_json
    from fleet.evaluation.inventory import DeclaredInventory

    described = read_json(inventory, "--inventory")
    _checked(DeclaredInventory, described, "--inventory")
    return {"inventory": described}


def _here(body: Json) -> Json:
    """By this process alone. Raises HoldfastError."""
    from fleet.evaluation.question import Question

    question: Question = _checked(Question, body, "")
    if question.against == "fleet":
        raise WrongUsage(
            "--local knows no fleet", field="--local", hint="add --against catalog or --inventory FILE, or leave it out"
        )
    return _evaluated(question)


def _evaluated(question: "Question") -> Json:
    import asyncio

    from fleet.catalog.machines import machines
    from fleet.evaluation.case import Ground as EvaluationGround
    from fleet.evaluation.evaluate import evaluate as evaluated
    from fleet.evaluation.inventory import every_engine, hosts_of
    from fleet.evaluation.question import Described
    from fleet.placement.fleet import Fleet

    facts = asyncio.run(_facts(question))
    if isinstance(question.against, Described):
        fleet = Fleet.of(hosts_of(question.against.inventory, every_engine()))
        ground = EvaluationGround("inventory", fleet)
    else:
        ground = EvaluationGround("catalog", machines=machines())
    answer: Json = evaluated(question, facts, ground).model_dump(mode="json")
    return answer


async def _facts(question: "Question") -> Any:
    from pathlib import Path

    from fleet.errors import InvalidInput, Unavailable
    from fleet.hub_facts import HubFacts
    from fleet.sizing.files import ReadError, ReadProblem
    from fleet.sizing.read import read_local

    model = question.spec.model
    hubs = HubFacts.of_settings(load_settings())
    try:
        return read_local(Path(model.path or "")) if model.source == "local" else await hubs.of(model)
    except ReadError as error:
        away = error.kind is ReadProblem.UNAVAILABLE
        raise (Unavailable if away else InvalidInput)(error.message, hint=error.hint, field="--model") from None
    finally:
        await hubs.aclose()


def _checked(kind: Any, value: Any, prefix: str) -> Any:
    from pydantic import ValidationError

    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise WrongUsage(f"{field or 'it'}: {first['msg']}", field=f"{prefix} {field}".strip()) from None


def _tell(answer: Json, *, explain: bool, as_json: bool) -> None:
    if as_json:
        output.print_json(answer)
        return
    from fleet.cli.evaluation_table import print_evaluation

    print_evaluation(answer, explain=explain)
