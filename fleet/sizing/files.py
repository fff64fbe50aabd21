"""Where a model's files are read from, in small pieces: a folder of this machine, or a hub."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from fleet.sizing.facts import ModelFile

_MOST_FILES = 20_000


class ReadProblem(StrEnum):
    MISSING = "missing"
    UNREADABLE = "unreadable"
    """It is there, and this process may not or cannot read it."""
    GATED = "gated"
    """A hub wants a token, or its terms accepted."""
    UNAVAILABLE = "unavailable"
    """A hub does not answer now: later it may."""
    TOO_LARGE = "too_large"
    """What describes it is larger than any such thing should be."""
    MALFORMED = "malformed"
    UNSUPPORTED = "unsupported"


class ReadError(Exception):
    """Nothing can be said of this model. ``message`` and ``hint`` are for people."""

    def __init__(self, kind: ReadProblem, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Span:
    """Part of a file, in bytes."""

    name: str
    start: int
    length: int


class Files(Protocol):
    """Those of one model. Blocks; each method raises ReadError."""

    @property
    def where(self) -> str:
        """For people."""
        ...

    def list(self) -> Sequence[ModelFile]:
        """All, by names relative to the model."""
        ...

    def read(self, spans: Sequence[Span]) -> Sequence[bytes]:
        """In their order, perhaps all at once; less than asked for where the file ends before."""
        ...


def read_one(files: Files, span: Span) -> bytes:
    return files.read([span])[0]


class LocalFiles:
    """The files right in a folder: those further below are not part of a model as engines load it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def where(self) -> str:
        return str(self._folder)

    def list(self) -> Sequence[ModelFile]:
        try:
            with os.scandir(self._folder) as entries:
                return tuple(_files_of(entries, self.where))
        except OSError as error:
            raise cannot_read(self.where, error) from error

    def read(self, spans: Sequence[Span]) -> Sequence[bytes]:
        return [self._read(span) for span in spans]

    def _read(self, span: Span) -> bytes:
        path = self._folder / span.name
        try:
            with path.open("rb") as file:
                file.seek(span.start)
                return file.read(span.length)
        except OSError as error:
            raise cannot_read(str(path), error) from error


def cannot_read(path: str, error: OSError) -> ReadError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ReadError(ReadProblem.MISSING, f"{path} does not exist", "copy the model there, or name another path")
    reason = error.strerror or type(error).__name__
    return ReadError(
        ReadProblem.UNREADABLE, f"{path} cannot be read: {reason}", "let the user that the host runs as read it"
    )


def _files_of(entries: Iterable[os.DirEntry[str]], where: str) -> list[ModelFile]:
    found: list[ModelFile] = []
    for entry in entries:
        if not entry.is_file():  # a pipe would keep us waiting; a link without an end is no file either
            continue
        if len(found) >= _MOST_FILES:
            raise ReadError(ReadProblem.TOO_LARGE, f"{where} holds more than {_MOST_FILES:,} files", "name the model")
        found.append(ModelFile(name=entry.name, size=entry.stat().st_size))
    return sorted(found, key=lambda f: f.name)
