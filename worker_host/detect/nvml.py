"""NVML with its ways of saying nothing told apart from its ways of failing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import pynvml

from worker_host.detect.card import CannotLook

T = TypeVar("T")
D = TypeVar("D")

_NOT_SAID = frozenset(
    {
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_INSUFFICIENT_SIZE,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_DATA,
        pynvml.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_DEPRECATED,
    }
)
"""This card or this driver does not know; nothing is wrong with it."""


@contextmanager
def session() -> Iterator[bool]:
    """NVML, open. False: there is no driver here. Raises CannotLook."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            yield False
            return
        raise CannotLook(f"NVML: {said(error)}") from None
    try:
        yield True
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def ask(default: D, call: Callable[..., T], *args: object) -> T | D:
    """``default`` where card or driver do not know. Raises NVMLError when something is wrong with the card."""
    try:
        return call(*args)
    except pynvml.NVMLError as error:
        if error.value in _NOT_SAID:
            return default
        raise


def said(error: pynvml.NVMLError) -> str:
    """For people, with the number that they look up."""
    return f"{error} (NVML {error.value})"


def text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
