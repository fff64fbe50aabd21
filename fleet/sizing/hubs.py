"""How model hubs are asked: one class for each, for what is peculiar to it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import quote, urlencode

from fleet.sizing.facts import ModelFile

Source = Literal["huggingface", "modelscope"]

_LARGEST_FILE = 2**50


@dataclass(frozen=True)
class Listing:
    files: Sequence[ModelFile]
    revision: str
    """To read them at, so that all are of one moment."""


class Hub(Protocol):
    """Of one repository. URLs are whole."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def page(self) -> str:
        """Where a person accepts its terms."""
        ...

    @property
    def token_setting(self) -> str: ...

    def listing_url(self, revision: str) -> str:
        """``revision``: empty for the default one."""
        ...

    def listing(self, answer: dict[str, Any], revision: str) -> Listing:
        """Raises ValueError where the answer is none."""
        ...

    def file_url(self, revision: str, file: str) -> str: ...

    def headers(self, token: str) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class HuggingFace:
    endpoint: str
    repo: str
    name: str = "Hugging Face"
    token_setting: str = "HOLDFAST_HUGGINGFACE_TOKEN"  # noqa: S105 - its name

    @property
    def page(self) -> str:
        return f"{self.endpoint}/{self.repo}"

    def listing_url(self, revision: str) -> str:
        at = f"/revision/{quote(revision, safe='')}" if revision else ""
        return f"{self.endpoint}/api/models/{quote(self.repo)}{at}?blobs=true"

    def listing(self, answer: dict[str, Any], revision: str) -> Listing:
        files = [_file(entry, "rfilename", "size") for entry in _entries(answer.get("siblings"))]
        commit = answer.get("sha")
        return Listing(files, commit if isinstance(commit, str) and commit else revision or "main")

    def file_url(self, revision: str, file: str) -> str:
        return f"{self.endpoint}/{quote(self.repo)}/resolve/{quote(revision, safe='')}/{quote(file)}"

    def headers(self, token: str) -> Mapping[str, str]:
        return {"authorization": f"Bearer {token}"} if token else {}


@dataclass(frozen=True)
class ModelScope:
    endpoint: str
    repo: str
    name: str = "ModelScope"
    token_setting: str = "HOLDFAST_MODELSCOPE_TOKEN"  # noqa: S105 - its name

    @property
    def page(self) -> str:
        return f"{self.endpoint}/models/{self.repo}"

    def listing_url(self, revision: str) -> str:
        query = {"Revision": revision, "Recursive": "True"} if revision else {"Recursive": "True"}
        return f"{self.endpoint}/api/v1/models/{quote(self.repo)}/repo/files?{urlencode(query)}"

    def listing(self, answer: dict[str, Any], revision: str) -> Listing:
        data = answer.get("Data")
        entries = _entries(data.get("Files") if isinstance(data, dict) else None)
        files = [_file(entry, "Path", "Size") for entry in entries if entry.get("Type") != "tree"]
        return Listing(files, revision or "master")

    def file_url(self, revision: str, file: str) -> str:
        query = urlencode({"Revision": revision, "FilePath": file})
        return f"{self.endpoint}/api/v1/models/{quote(self.repo)}/repo?{query}"

    def headers(self, token: str) -> Mapping[str, str]:
        """Its own client sends the token as a cookie."""
        return {"authorization": f"Bearer {token}", "cookie": f"m_session_id={token}"} if token else {}


def hub_of(source: Source, repo: str, endpoint: str = "") -> Hub:
    """``endpoint``: empty for the public one."""
    if source == "huggingface":
        return HuggingFace((endpoint or "https://huggingface.co").rstrip("/"), repo)
    return ModelScope((endpoint or "https://www.modelscope.cn").rstrip("/"), repo)


def _entries(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError("it lists no files")
    return value


def _file(entry: dict[str, Any], name_field: str, size_field: str) -> ModelFile:
    name, size = entry.get(name_field), entry.get(size_field)
    if (
        not isinstance(name, str)
        or isinstance(size, bool)
        or not isinstance(size, int)
        or not 0 <= size < _LARGEST_FILE
    ):
        raise ValueError(f"it lists a file without a name or a size: {str(name)[:80]!r}")
    return ModelFile(name=name, size=size)
