"""What this host says about a model file or folder: read once, and again only when it has changed."""

import asyncio
import errno
import os
import re
from collections import OrderedDict
from pathlib import Path

from fleet.host_client import FileFacts
from fleet.sizing.facts import Lora, ModelFacts
from fleet.sizing.files import LocalFiles, ReadError, cannot_read
from fleet.sizing.lora import read_lora
from fleet.sizing.read import read_local

_GGUF_MAGIC = b"GGUF"
_IN_PARTS = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_MOST_REMEMBERED = 256

Found = ModelFacts | Lora | ReadError
Signature = tuple[tuple[str, int, int], ...]
"""(name, modified in ns, bytes) of each file."""


class ModelReader:
    """Of one event loop."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[Signature, Found]] = OrderedDict()
        self._reading: dict[Path, asyncio.Task[FileFacts]] = {}

    async def facts(self, path: Path) -> FileFacts:
        """Whoever asks for the same at once waits for one reading, so that a disk that hangs holds one thread only."""
        task = self._reading.get(path)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self.read, path))
            self._reading[path] = task
            task.add_done_callback(lambda _: self._reading.pop(path, None))
        return await asyncio.shield(task)

    def read(self, path: Path) -> FileFacts:
        """The same, blocking."""
        resolved = Path(os.path.realpath(path))  # unlike ``resolve``, it has an answer for a link to itself
        try:
            facts = _file_facts(resolved)
        except OSError as error:
            facts = FileFacts(path=str(resolved), exists=error.errno != errno.ENAMETOOLONG)
        return self._with_model(resolved, facts) if facts.exists else facts

    def _with_model(self, path: Path, facts: FileFacts) -> FileFacts:
        found = self._model(path)
        if isinstance(found, Lora):
            size = found.bytes if facts.is_folder else facts.size_bytes
            return facts.model_copy(update={"lora": found, "readable": True, "size_bytes": size})
        if isinstance(found, ReadError):
            return facts.model_copy(update={"model_error": found.message, "model_hint": found.hint})
        if facts.is_folder:
            return facts.model_copy(update={"model": found, "readable": True, "size_bytes": found.file_bytes})
        return facts.model_copy(update={"model": found})

    def _model(self, path: Path) -> Found:
        try:
            signature = _signature(path)
        except (OSError, ReadError) as error:
            return error if isinstance(error, ReadError) else cannot_read(str(path), error)
        known = self._known.pop(str(path), None)
        if known is None or known[0] != signature:
            known = (signature, _read(path))
        self._known[str(path)] = known
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return known[1]


def _read(path: Path) -> Found:
    """A model; what is none may be an adapter."""
    try:
        return read_local(path)
    except ReadError as error:
        no_model = error.with_traceback(None)
    try:
        return read_lora(path)
    except ReadError:
        return no_model


def _file_facts(path: Path) -> FileFacts:
    """Without the model. Raises OSError."""
    if path.is_dir():
        return FileFacts(path=str(path), exists=True, is_folder=True)
    if not path.is_file():  # a pipe would keep us waiting
        return FileFacts(path=str(path), exists=path.exists())
    with path.open("rb") as file:
        magic = file.read(len(_GGUF_MAGIC))
        size = file.seek(0, os.SEEK_END)
    return FileFacts(path=str(path), exists=True, readable=True, size_bytes=size, is_gguf=magic == _GGUF_MAGIC)


def _signature(path: Path) -> Signature:
    """Raises OSError, ReadError."""
    if path.is_dir():
        return tuple(_stamp(path / file.name) for file in LocalFiles(path).list())
    if (parts := _IN_PARTS.search(path.name)) is not None:
        stem = path.name[: parts.start()]
        others = (f.name for f in LocalFiles(path.parent).list() if f.name.startswith(stem))
        return tuple(_stamp(path.parent / name) for name in others)
    return (_stamp(path),)


def _stamp(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return path.name, found.st_mtime_ns, found.st_size
