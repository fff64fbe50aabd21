"""What containers are given of the host's cards: exactly the claimed ones."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.engines.devices import ContainerDevices, NoContainer, devices_for, kind_of
from fleet.inventory import AcceleratorKind, DeviceIds, Gpu

K = AcceleratorKind
WITH_FILES = [K.AMD, K.HYGON, K.ASCEND, K.ILUVATAR, K.CAMBRICON, K.METAX]


def gpu(kind: AcceleratorKind, number: int) -> Gpu:
    """The numbers of one card are all different, so that none can be taken for another."""
    device = DeviceIds(minor=100 + number, card=200 + number, render=300 + number, physical_id=400 + number)
    return Gpu(uuid=f"GPU-{number}", kind=kind, name="card", memory_bytes=1, index=number, device=device)


CASES: dict[AcceleratorKind, tuple[str, ...]] = {
    K.CPU: (),
    K.NVIDIA: (),
    K.AMD: ("/dev/kfd", "/dev/dri/card202", "/dev/dri/renderD302", "/dev/dri/card205", "/dev/dri/renderD305"),
    K.HYGON: (
        *("/dev/kfd", "/dev/mkfd"),
        *("/dev/dri/card202", "/dev/dri/renderD302", "/dev/dri/card205", "/dev/dri/renderD305"),
    ),
    K.ASCEND: (
        *("/dev/davinci402", "/dev/davinci405"),
        *("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"),
    ),
    K.MTHREADS: (),
    K.ILUVATAR: ("/dev/itrctl", "/dev/iluvatar102", "/dev/iluvatar105"),
    K.CAMBRICON: ("/dev/cambricon_ctl", "/dev/cambricon_dev102", "/dev/cambricon_dev105"),
    K.METAX: ("/dev/mxcd", "/dev/dri/card202", "/dev/dri/renderD302", "/dev/dri/card205", "/dev/dri/renderD305"),
}


@pytest.mark.parametrize(("kind", "devices"), CASES.items())
def test_container_gets_the_device_files_of_its_cards(kind: AcceleratorKind, devices: tuple[str, ...]) -> None:
    cards = [] if kind is K.CPU else [gpu(kind, 2), gpu(kind, 5)]
    assert devices_for(kind, cards).devices == devices


def test_every_kind_is_covered() -> None:
    assert {*CASES, K.APPLE} == set(AcceleratorKind)
    with pytest.raises(NoContainer, match="process"):
        devices_for(K.APPLE, [gpu(K.APPLE, 0)])


def test_nvidia_cards_are_handed_out_by_uuid() -> None:
    given_ = devices_for(K.NVIDIA, [gpu(K.NVIDIA, 5), gpu(K.NVIDIA, 2)])
    assert given_ == ContainerDevices(gpu_ids=("GPU-5", "GPU-2"), env={"CUDA_VISIBLE_DEVICES": "GPU-5,GPU-2"})


def test_moore_threads_runtime_is_told_the_indices() -> None:
    given_ = devices_for(K.MTHREADS, [gpu(K.MTHREADS, 5), gpu(K.MTHREADS, 2)])
    assert given_.runtime == "mthreads"
    assert given_.env["MTHREADS_VISIBLE_DEVICES"] == "5,2"
    assert given_.env["MUSA_VISIBLE_DEVICES"] == "0,1", "inside they are counted from 0"


@given(st.sampled_from(WITH_FILES), st.lists(st.integers(0, 15), min_size=1, unique=True))
def test_no_other_card_is_ever_given(kind: AcceleratorKind, numbers: list[int]) -> None:
    given_ = devices_for(kind, [gpu(kind, n) for n in numbers])
    named = {int(found) % 100 for path in given_.devices for found in re.findall(r"\d{3}$", path)}
    assert named == set(numbers)
    assert not given_.gpu_ids


@pytest.mark.parametrize("kind", WITH_FILES)
def test_card_without_a_number_is_named_rather_than_guessed(kind: AcceleratorKind) -> None:
    with pytest.raises(NoContainer, match=r"card GPU-1: (minor|card|physical_id) is unknown"):
        devices_for(kind, [gpu(kind, 1).model_copy(update={"device": DeviceIds()})])


def test_cards_of_different_vendors_are_not_mixed() -> None:
    assert kind_of([]) is K.CPU
    assert kind_of([gpu(K.AMD, 0), gpu(K.AMD, 1)]) is K.AMD
    with pytest.raises(NoContainer, match="amd, nvidia"):
        kind_of([gpu(K.AMD, 0), gpu(K.NVIDIA, 1)])
