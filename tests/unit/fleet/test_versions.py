import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.versions import why_not

NUMBERS = st.integers(0, 300)
TAILS = st.sampled_from(["", ".0", ".17", ".0rc1", ".1.dev3", "b2"])


@given(NUMBERS, NUMBERS, TAILS, TAILS)
def test_the_same_minor_release_fits_whatever_comes_after(major: int, minor: int, ours: str, theirs: str) -> None:
    assert why_not(f"{major}.{minor}{ours}", f"{major}.{minor}{theirs}") == ""


@given(NUMBERS, NUMBERS, TAILS)
def test_one_minor_release_apart_fits_both_ways(major: int, minor: int, tail: str) -> None:
    assert why_not(f"{major}.{minor}.0", f"{major}.{minor + 1}{tail}") == ""
    assert why_not(f"{major}.{minor + 1}.0", f"{major}.{minor}{tail}") == ""


@given(NUMBERS, NUMBERS, st.integers(2, 50), TAILS)
def test_two_or_more_apart_are_refused_and_who_must_upgrade_is_said(
    major: int, minor: int, apart: int, tail: str
) -> None:
    old, new = f"{major}.{minor}{tail}", f"{major}.{minor + apart}{tail}"
    assert f"upgrade the host to {new}" in why_not(new, old)
    assert f"upgrade the control plane to {new}" in why_not(old, new)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_the_answer_is_the_same_from_both_sides(a: int, b: int, c: int, d: int) -> None:
    assert bool(why_not(f"{a}.{b}", f"{c}.{d}")) == bool(why_not(f"{c}.{d}", f"{a}.{b}"))


def test_another_major_release_is_refused() -> None:
    assert why_not("1.0.0", "0.9.0")


@pytest.mark.parametrize("version", ["", "1", "x.y", "latest", "９.１", "0." + "1" * 400, "1.2 (evil)", "0.1\n0"])
def test_what_is_no_version_is_refused(version: str) -> None:
    assert "does not say" in why_not("0.1.0", version)
    assert len(why_not("0.1.0", version)) < 200


@given(st.text(max_size=300))
def test_nothing_that_a_host_says_breaks_it(version: str) -> None:
    assert isinstance(why_not("0.1.0", version), str)
