"""Hygon DCUs, through hy-smi, or the rocm-smi that comes with older toolkits."""

import glob
from collections.abc import Sequence
from pathlib import Path

from fleet.inventory import AcceleratorKind, Gpu
from worker_host.detect import rocm
from worker_host.detect.card import CannotLook, Look
from worker_host.detect.tools import find

_FOLDERS = ("/opt/hyhal/bin", "/usr/local/hyhal/bin", "/opt/dtk/bin")
_VERSIONS = "/opt/dtk*/.info/version"


class Hygon:
    kind = AcceleratorKind.HYGON

    def look(self, known: Sequence[Gpu] = ()) -> Look:
        tool = find("hy-smi", *_FOLDERS)
        if tool is not None:
            answer = rocm.query(tool, "hy-smi")
            rows = answer.rows
        else:
            tool = find("rocm-smi", *_FOLDERS)
            if tool is None:
                return Look()
            try:
                answer = rocm.query(tool, "rocm-smi")
            except CannotLook:
                return Look()  # AMD's own detection says what is wrong with it
            rows = tuple(row for row in answer.rows if row.is_hygon)
        runtime = dtk_version()
        return Look(tuple(rocm.card(self.kind, row, answer.driver, runtime) for row in rows))


def dtk_version() -> str:
    for name in sorted(glob.glob(_VERSIONS), reverse=True):  # noqa: PTH207 - the pattern has a folder in it
        try:
            if text := Path(name).read_text().strip():
                return text[:50]
        except OSError:
            continue
    return ""
