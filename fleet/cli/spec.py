"""From the options of ``holdfast deploy`` to the body of ``POST /deployments``."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.cli.setup import WrongUsage

Json = dict[str, Any]


@dataclass(frozen=True)
class DeployOptions:
    """What was given on the command line; None and empty leave the file's value alone."""

    model: str | None = None
    replicas: int | None = None
    engine: str | None = None
    engine_args: Sequence[str] = ()
    env: Sequence[str] = ()
    labels: Sequence[str] = ()
    max_model_len: int | None = None
    concurrency: int | None = None
    gpus: int | None = None
    cpu_threads: int | None = None


def read_document(source: str) -> Json:
    """A deployment as JSON from a file, or from stdin for ``-``. A bare spec is taken as one, too."""
    document = read_json(source, "--file")
    return document if "spec" in document else {"spec": document}


def read_json(source: str, option: str) -> Json:
    """The JSON object in a file, or on stdin for ``-``."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
        document = json.loads(text)
    except OSError as error:
        raise WrongUsage(f"cannot read {source}: {error.strerror}", field=option) from None
    except ValueError as error:
        raise WrongUsage(f"{source} is not JSON: {error}", field=option) from None
    if not isinstance(document, dict):
        raise WrongUsage(f"{source} holds no JSON object", field=option)
    return document


def build(name: str | None, document: Mapping[str, Any], options: DeployOptions) -> Json:
    """The body to send: ``document`` with the options laid over it. The API checks all values."""
    body: Json = {key: value for key, value in document.items() if key != "status"}
    spec: Json = dict(body.get("spec") or {})
    if name or body.get("name"):
        body["name"] = name or body["name"]
    else:
        raise WrongUsage("a deployment needs a name", field="NAME", hint="holdfast deploy NAME --model PATH")
    if options.model:
        spec["model"] = {"source": "local", "path": model_path(options.model)}
    if not spec.get("model"):
        raise WrongUsage("a deployment needs a model", field="--model", hint="--model PATH or --file spec.json")
    labels = parse_pairs(options.labels, "--label")
    if labels or "labels" in body:
        body["labels"] = {**body.get("labels", {}), **labels}
    _lay_over(spec, options)
    return {**body, "spec": spec}


def _lay_over(spec: Json, options: DeployOptions) -> None:
    simple = ("replicas", "engine", "max_model_len", "concurrency")
    spec.update({key: value for key in simple if (value := getattr(options, key)) is not None})
    if options.engine_args:
        spec["engine_args"] = [*spec.get("engine_args", []), *options.engine_args]
    if options.env:
        spec["env"] = {**spec.get("env", {}), **parse_env(options.env)}
    if options.gpus is not None:
        spec["placement"] = {**spec.get("placement", {}), "gpus_per_replica": options.gpus}
    if options.cpu_threads is not None:
        spec["resources"] = {**spec.get("resources", {}), "cpu_threads": options.cpu_threads}


def model_path(given: str) -> str:
    """As given, for the host's models folder; but ``./x``, ``../x`` and ``~/x`` mean a file from here."""
    if given.startswith(("./", "../", "~")):
        return str(Path(given).expanduser().resolve())
    return given


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, str]:
    parsed: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise WrongUsage(f"{pair!r} is not of the form key=value", field=option)
        parsed[key] = value
    return parsed


def parse_env(pairs: Sequence[str]) -> dict[str, str]:
    """``K=V``, or ``K`` for the value that ``K`` has here, which keeps secrets off the command line."""
    parsed: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals and name not in os.environ:
            raise WrongUsage(f"{name} is not set here", field="--env", hint="--env NAME=VALUE, or export it first")
        parsed[name] = value if equals else os.environ[name]
    return parsed


def assign(spec: Json, assignment: str) -> None:
    """``rollout.strategy=canary`` into a nested patch."""
    path, equals, text = assignment.partition("=")
    *parents, last = path.split(".")
    if not equals or not all((*parents, last)):
        raise WrongUsage(f"{assignment!r} is not FIELD=VALUE", hint="e.g. --set rollout.strategy=canary")
    for parent in parents:
        spec = spec.setdefault(parent, {})
        if not isinstance(spec, dict):
            raise WrongUsage(f"{path!r} is inside of something that was set before", hint="set each field once")
    spec[last] = _value(text)


def _value(text: str) -> Any:
    """JSON where it is, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
