"""A Docker engine for tests, images for it, and a registry to pull them from.

As root on Linux the tests start an engine of their own: another data folder, another socket, another bridge, no rule in
the system's packet filter. So test runs do not meet, and one may kill its engine. Without root the engine that runs
already is used; nothing in it is touched but what carries the labels of the test's own hosts.
"""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import psutil
import pytest

from tests.engine_fixtures import one_installer
from tests.stack import eventually, free_ports
from worker_host.runtime.docker_client import DEFAULT_URL, DockerClient

CACHE = Path.home() / ".cache" / "holdfast-tests"
ACTOR = "holdfast-test/actor:1"
LLAMA_SERVER = "holdfast-test/llama-server:1"
USER, PASSWORD = "puller", "pull-secret-1"
_HTPASSWD = f"{USER}:$2b$05$bQLDANakqWPZ7SG.HIbxU.KmLqzoew/jG2qmK.fr2/L3x0SbIVQvG\n"
_SUBNETS = "10.231."
_OURS = re.compile(r"\bhfd(\d+)[a-z]?\b")
"""Names carry the process id of the test run, by which what a dead one has left is found."""


class DockerEngine:
    """Where tests run containers. ``own``: it may be killed and started again."""

    def __init__(self, url: str, *, own: bool) -> None:
        self.url = url
        self.own = own

    @property
    def api(self) -> docker.APIClient:
        return docker.APIClient(base_url=self.url, version="auto", timeout=60)

    def answers(self) -> bool:
        return DockerClient(self.url).answers()


class OwnEngine(DockerEngine):
    def __init__(self, more: str = "", disk_bytes: int = 0) -> None:
        """``more``: a letter, for one beside the first. ``disk_bytes``: all that it has for images and containers."""
        self._bridge = f"hfd{os.getpid()}{more}"
        self.folder = CACHE / "docker" / self._bridge
        self._disk_bytes = disk_bytes
        self._run = Path("/run") / self._bridge
        """For sockets, whose paths must be short."""
        super().__init__(f"unix://{self._run}/docker.sock", own=True)
        self._containerd: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._subnet = _free_subnet()

    def make(self) -> None:
        for folder in (self.folder, self._run):
            folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "daemon.json").write_text("{}")
        if self._disk_bytes:
            (self.folder / "data").mkdir()
            options = f"size={self._disk_bytes}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.folder / "data"], check=True)
        (self.folder / "containerd.toml").write_text(
            f'version = 2\nroot = "{self.folder}/data/containerd"\nstate = "{self._run}/containerd"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        )
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self._subnet}.1/25", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    def start(self) -> None:
        """Returns when it answers."""
        command: list[str | Path] = ["dockerd", "--config-file", self.folder / "daemon.json", "--host", self.url]
        command += ["--data-root", self.folder / "data", "--exec-root", self._run / "exec"]
        command += ["--pidfile", self._run / "pid", "--bridge", self._bridge, "--live-restore"]
        command += ["--iptables=false", "--ip-masq=false", "--ip-forward=false", "--exec-opt", _CGROUPS]
        command += ["--default-address-pool", f"base={self._subnet}.128/25,size=28"]
        command += ["--containerd", self._run / "containerd.sock"]
        (self._run / "pid").unlink(missing_ok=True)
        if self._containerd is None:
            self._containerd = self._spawn(
                ["containerd", "--config", self.folder / "containerd.toml", "--address", self._run / "containerd.sock"]
            )
            eventually((self._run / "containerd.sock").exists, within=30, what="containerd answers")
        self._process = self._spawn(command)
        try:
            eventually(self.answers, within=60, what="the Docker engine answers", every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(self.folder / 'log').read_text()[-3000:]}") from None

    def _spawn(self, command: list[str | Path]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as output:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def kill(self) -> None:
        """As a crash does: its containers go on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self.answers():
            for container in self.api.containers(all=True):
                self.api.remove_container(container["Id"], force=True)
            self.api.prune_networks()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._containerd is not None:
            self._containerd.kill()
            self._containerd.wait()
        _clear(self.folder)
        _clear(self._run)
        _ip("link", "del", self._bridge)


_CGROUPS = "native.cgroupdriver=cgroupfs"


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """Skips where there is none and none can be started."""
    if os.geteuid() == 0 and shutil.which("dockerd") and shutil.which("ip"):
        _clear_after_the_dead()
        engine = OwnEngine()
        engine.make()
        try:
            engine.start()
            yield engine
        finally:
            engine.close()
        return
    found = DockerEngine(os.environ.get("DOCKER_HOST") or DEFAULT_URL, own=False)
    if not found.answers():
        pytest.skip("needs a Docker engine: a running one, or root and the program dockerd (`make test` installs it)")
    yield found


@pytest.fixture
def own_docker_engine(docker_engine: DockerEngine) -> Iterator[OwnEngine]:
    """One that the test may kill."""
    if not isinstance(docker_engine, OwnEngine):
        pytest.skip("needs root, to start and kill a Docker engine of its own")
    yield docker_engine
    if not docker_engine.answers():
        docker_engine.start()


@pytest.fixture(scope="module")
def other_docker_engine(docker_engine: DockerEngine) -> Iterator[OwnEngine]:
    """A second one, to pull what the first has pushed."""
    if not docker_engine.own:
        pytest.skip("needs root, to start a Docker engine of its own")
    made = OwnEngine("b")
    made.make()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def cramped_docker_engine(docker_engine: DockerEngine) -> Iterator[OwnEngine]:
    """One with hardly any disk."""
    if not docker_engine.own:
        pytest.skip("needs root, to start a Docker engine of its own")
    made = OwnEngine("c", disk_bytes=24 << 20)
    made.make()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def actor() -> Path:
    """A program that does as its arguments say: see ``actor.c``."""
    binary = CACHE / "actor"
    source = Path(__file__).parent / "contracts" / "actor.c"
    if not shutil.which("gcc"):
        pytest.skip("needs gcc (`make test` installs it)")
    with one_installer(CACHE):
        if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["gcc", "-static", "-O1", "-o", binary, source], check=True)
    return binary


@pytest.fixture(scope="session")
def actor_image(docker_engine: DockerEngine, actor: Path) -> str:
    """With the actor, and without an entrypoint."""
    build_image(docker_engine, ACTOR, {"actor": actor}, "ENV PATH=/\n")
    return ACTOR


@pytest.fixture(scope="session")
def llama_image(docker_engine: DockerEngine, llama_server_binary: Path) -> str:
    """The real ``llama-server`` of the tests, with the libraries that it needs of this system."""
    root = llama_server_binary.parent.parent
    files = {
        f"opt/llama/{path.relative_to(root)}": path
        for folder in ("bin", "lib")
        for path in (root / folder).rglob("*")
        if path.is_file() and "vulkan" not in path.name
    }
    for path in _libraries(llama_server_binary):
        if root not in path.parents:
            files[str(path).lstrip("/")] = path.resolve()
    build_image(docker_engine, LLAMA_SERVER, files, 'ENTRYPOINT ["/opt/llama/bin/llama-server"]\n')
    return LLAMA_SERVER


def _libraries(binary: Path) -> list[Path]:
    told = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    return [Path(word) for word in told.split() if word.startswith("/")]


def build_image(engine: DockerEngine, tag: str, files: dict[str, Path], more: str) -> None:
    """FROM scratch: nothing is fetched."""
    context, root = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=root, mode="w") as tar:
        for name, path in files.items():
            tar.add(path.resolve(), arcname=name)
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, content in (
            ("root.tar", root.getvalue()),
            ("Dockerfile", f"FROM scratch\nADD root.tar /\n{more}".encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    context.seek(0)
    for event in engine.api.build(fileobj=context, custom_context=True, tag=tag, decode=True, rm=True):
        assert "error" not in event, event


class Registry:
    """Debian's ``docker-registry`` on loopback, with what was pushed to it."""

    def __init__(self, binary: Path, folder: Path, *, locked: bool) -> None:
        [self.port] = free_ports(1)
        self.host = f"127.0.0.1:{self.port}"
        self.locked = locked
        self._folder = folder
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "htpasswd").write_text(_HTPASSWD)
        config = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(self._folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
        }
        if self.locked:
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(self._folder / "htpasswd")}}
        (self._folder / "config.yml").write_text(json.dumps(config))
        with (self._folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [self._binary, "serve", self._folder / "config.yml"], stdout=output, stderr=output
            )
        eventually(
            lambda: httpx.get(f"http://{self.host}/v2/", trust_env=False).status_code in (200, 401),
            within=20,
            what=f"the registry answers\n{(self._folder / 'log').read_text()[-1000:]}",
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def push(self, engine: DockerEngine, image: str, name: str) -> str:
        """Its full name there; it is not in ``engine`` by that name any more."""
        full = f"{self.host}/{name}"
        repository, _, tag = full.rpartition(":")
        engine.api.tag(image, repository, tag)
        auth = {"username": USER, "password": PASSWORD} if self.locked else None
        for event in engine.api.push(repository, tag=tag, stream=True, decode=True, auth_config=auth):
            assert "error" not in event, event
        engine.api.remove_image(full, force=True)
        return full

    def credentials(self, path: Path) -> Path:
        """The file that lets a host pull from here."""
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        path.touch(mode=0o600)
        path.write_text(json.dumps({"auths": {self.host: {"auth": secret}}}))
        return path


@pytest.fixture(scope="session")
def registry_binary() -> Path:
    folder = CACHE / "docker-registry"
    binary = folder / "usr" / "bin" / "docker-registry"
    with one_installer(CACHE):
        if not binary.exists():
            if not (shutil.which("apt-get") and shutil.which("dpkg")):
                pytest.skip("needs Debian's or Ubuntu's package docker-registry")
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["apt-get", "download", "docker-registry"], cwd=folder, check=True, capture_output=True)
            [package] = folder.glob("docker-registry_*.deb")
            subprocess.run(["dpkg", "-x", package, folder], check=True)
    return binary


@pytest.fixture
def registry(registry_binary: Path, tmp_path: Path) -> Iterator[Registry]:
    made = Registry(registry_binary, tmp_path / "registry", locked=False)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def locked_registry(registry_binary: Path, tmp_path: Path) -> Iterator[Registry]:
    """One that wants a password."""
    made = Registry(registry_binary, tmp_path / "locked-registry", locked=True)
    made.start()
    yield made
    made.stop()


# -- what dead test runs have left -------------------------------------------------------------------------------------


def _clear_after_the_dead() -> None:
    for folder in [*(CACHE / "docker").glob("hfd*"), *Path("/run").glob("hfd*")]:
        found = _OURS.fullmatch(folder.name)
        if found and not psutil.pid_exists(int(found[1])):
            _clear(folder)
    for bridge, address in re.findall(r"\b(hfd\d+[a-z]?|br-\w+)\s+inet ([\d.]+)", _ip("-o", "-4", "addr", "show")):
        if address.startswith(_SUBNETS) and _is_of_the_dead(bridge, address):
            _ip("link", "del", bridge)


def _is_of_the_dead(bridge: str, address: str) -> bool:
    if found := _OURS.fullmatch(bridge):
        return not psutil.pid_exists(int(found[1]))
    subnet = address.rpartition(".")[0]  # a network made by an engine whose own bridge has gone
    return not re.search(rf"\bhfd\d+[a-z]?\s+inet {re.escape(subnet)}\.1/", _ip("-o", "-4", "addr", "show"))


def _clear(folder: Path) -> None:
    """End what still runs from ``folder``, which no other engine uses, and remove it."""
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or ()):
            try:
                process.send_signal(signal.SIGKILL)
                process.wait(5)
            except (psutil.Error, psutil.TimeoutExpired):
                continue
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _free_subnet() -> str:
    """The first three numbers of one that nobody here uses."""
    used = _ip("-o", "-4", "addr", "show") + _ip("-4", "route", "show")
    start = os.getpid()
    return next(subnet for n in range(256) if f"{(subnet := f'{_SUBNETS}{(start + n) % 256}')}." not in used)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0 and arguments[0] != "link":
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr}")
    return done.stdout
