"""What makes an NVIDIA card sick although it answers."""

from typing import Any

import pynvml

from worker_host.detect import nvidia_xid
from worker_host.detect.nvml import ask, text

_RETIRED_MOST = 60
"""Memory pages that were taken out of use; from then on NVIDIA replaces the card."""


def reason(handle: Any) -> str:
    """Why nothing should run on this card; empty: nothing speaks against it. Raises NVMLError."""
    return "; ".join(filter(None, (_ecc(handle), _rows(handle), _pages(handle), _xid(handle))))


def uncorrectable(handle: Any) -> int | None:
    """ECC errors since the driver was loaded; None: a card without ECC."""
    kind, since = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    count = ask(None, pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, since)
    return int(count) if count is not None else None


def _ecc(handle: Any) -> str:
    count = uncorrectable(handle) or 0
    return f"{count} uncorrectable ECC error{'s'[: count > 1]} since the driver was loaded" if count else ""


def _rows(handle: Any) -> str:
    rows = ask(None, pynvml.nvmlDeviceGetRemappedRows, handle)
    return "row remapping failed: the card must be replaced" if rows is not None and rows[3] else ""


def _pages(handle: Any) -> str:
    causes = (
        pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
        pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
    )
    retired = sum(len(ask((), pynvml.nvmlDeviceGetRetiredPages, handle, cause)) for cause in causes)
    return f"{retired} retired memory pages: the card must be replaced" if retired >= _RETIRED_MOST else ""


def _xid(handle: Any) -> str:
    return nvidia_xid.reason(text(pynvml.nvmlDeviceGetUUID(handle)))
