"""A stand-in for ``llama-server`` that starts in no time and does what the name of its model says.

Run with the standard library only. Next to the model file, ``starts`` gets a line with each pid. While one of these
exists there, too, the server: ``busy`` says that it works on a request, ``dumb`` gives no metrics, ``stuck`` finishes
no request. ``decodes`` holds how far it has got. ``--fail-requests-after N``: answers N requests, and 500 from then on.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time

requests = itertools.count(1)
fails_after = float("inf")


def main() -> None:
    global fails_after  # noqa: PLW0603
    if "--version" in sys.argv:
        print("version: 1 (fake)")
        return
    flags = dict(zip(sys.argv[1:], [*sys.argv[2:], ""], strict=True))
    fails_after = float(flags.get("--fail-requests-after", "inf"))
    model, folder = os.path.basename(flags["--model"]), os.path.dirname(flags["--model"])  # noqa: PTH119, PTH120
    print(f"loading {model} with token {os.environ.get('TOKEN', 'none')}", flush=True)
    with open(os.path.join(folder, "starts"), "a") as starts:  # noqa: PTH118, PTH123
        starts.write(f"{os.getpid()}\n")
    behave(model)
    serve(model, folder, flags["--host"], int(flags["--port"]))


def behave(model: str) -> None:
    if model.startswith("unknown"):
        print("llama_model_load: error loading model: unknown model architecture: 'qwen99'", flush=True)
        sys.exit(1)
    if model.startswith("silent"):
        sys.exit(3)
    if model.startswith("hang"):
        signal.pause()
    if model.startswith("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if model.startswith("parent"):
        subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])


def serve(model: str, folder: str, host: str, port: int) -> None:
    began = time.monotonic()
    with socket.create_server((host, port)) as listening:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=answer, args=(connection, model, folder, began), daemon=True).start()


def answer(connection: socket.socket, model: str, folder: str, began: float) -> None:
    with connection, connection.makefile("rb") as lines:
        path = lines.readline().split()[1].decode()
        length = 0
        while line := lines.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        lines.read(length)
        status, body = 200, "{}"
        loading = model.startswith("cold") or (model.startswith("loading") and time.monotonic() - began < 0.3)
        if path == "/health" and loading:
            status, body = 503, '{"error": "Loading model"}'
        if path == "/v1/completions" and (model.startswith("stuck") or there(folder, "stuck")):
            time.sleep(3600)
        if path == "/metrics" and there(folder, "dumb"):
            time.sleep(3600)
        if path == "/v1/completions" and model.startswith("picky"):
            status, body = 400, '{"error": {"message": "this model has no words"}}'
        if path == "/v1/completions" and next(requests) > fails_after:
            status, body = 500, '{"error": {"message": "out of ideas"}}'
        if path == "/metrics":
            busy, decodes = int(there(folder, "busy")), there(folder, "decodes") or 1
            body = f"# TYPE\nllamacpp:requests_processing {busy}\nllamacpp:requests_deferred 0\n"
            body += f"llamacpp:n_decode_total {decodes}\n"
        head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        connection.sendall((head + body).encode())


def there(folder: str, name: str) -> int:
    """The size of a file next to the model; whether it exists when it is empty."""
    try:
        return os.path.getsize(os.path.join(folder, name)) or 1  # noqa: PTH118, PTH202
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main()
