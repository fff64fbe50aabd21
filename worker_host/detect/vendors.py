"""Every vendor that we can ask."""

from worker_host.detect.amd import Amd
from worker_host.detect.apple import Apple
from worker_host.detect.ascend import Ascend
from worker_host.detect.cambricon import Cambricon
from worker_host.detect.card import Vendor
from worker_host.detect.hygon import Hygon
from worker_host.detect.iluvatar import Iluvatar
from worker_host.detect.metax import MetaX
from worker_host.detect.mthreads import MooreThreads
from worker_host.detect.nvidia import Nvidia


def all_vendors(*, watch: bool = False) -> tuple[Vendor, ...]:
    """``watch``: also for faults that drivers tell only while they happen; for processes that stay."""
    return (
        Nvidia(watch=watch),
        Amd(),
        Ascend(),
        Hygon(),
        MooreThreads(),
        Iluvatar(),
        Cambricon(),
        MetaX(),
        Apple(),
    )
