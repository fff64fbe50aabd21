"""Faults that the NVIDIA driver reports as they happen (Xid errors)."""

import contextlib
import ctypes
import threading
from typing import Any

import pynvml

from worker_host.detect.nvml import text

FATAL = {
    48: "double-bit ECC error",
    63: "row remapping is pending",
    64: "row remapping failed",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "the GPU's system processor does not answer",
    120: "the GPU's system processor failed",
}
"""Those after which a card needs a reset or a look. The others are mistakes of programs that run on it."""
_DRAIN_MOST = 1000

_seen: dict[str, int] = {}
_lock = threading.Lock()


def reason(uuid: str) -> str:
    """The fault of this card; empty: it had none while somebody watched."""
    with _lock:
        number = _seen.get(uuid)
    return f"Xid {number}: {FATAL[number]}" if number is not None else ""


class XidWatch:
    """Collects what the driver tells. As long as it lives NVML is kept open: a card that is to be reset needs this
    process to end, and with it the memory of the fault ends too."""

    def __init__(self) -> None:
        self._events: Any = None
        self._watched: dict[str, Any] = {}

    def collect(self) -> None:
        """Everything since the last time. Does not wait; never raises."""
        with contextlib.suppress(pynvml.NVMLError):
            self._open()
            for _ in range(_DRAIN_MOST):
                event = pynvml.nvmlEventSetWait(self._events, 0)
                number = int(event.eventData)
                if event.eventType == pynvml.nvmlEventTypeXidCriticalError and number in FATAL:
                    self._note(event.device, number)

    def close(self) -> None:
        if self._events is not None:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlEventSetFree(self._events)
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            self._events, self._watched = None, {}

    def _open(self) -> None:
        if self._events is None:
            pynvml.nvmlInit()
            try:
                self._events = pynvml.nvmlEventSetCreate()
            except pynvml.NVMLError:
                pynvml.nvmlShutdown()
                raise
        for index in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = text(pynvml.nvmlDeviceGetUUID(handle))
                if uuid not in self._watched:
                    pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._events)
                    self._watched[uuid] = handle

    def _note(self, device: Any, number: int) -> None:
        # A lost card does not tell its UUID any more: it is known by its handle.
        uuid = next((u for u, h in self._watched.items() if _address(h) == _address(device)), None)
        if uuid is not None:
            with _lock:
                _seen[uuid] = number


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
