"""Which container images go."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fleet.policy.images import KeptImage, superfluous

NOW = datetime(2026, 1, 31, tzinfo=UTC)
WEEK = timedelta(days=7)
IMAGES = st.lists(
    st.builds(
        KeptImage,
        id=st.uuids().map(str),
        size_bytes=st.integers(0, 1000),
        last_used=st.integers(0, 20 * 24).map(lambda hours: NOW - timedelta(hours=hours)),
        in_use=st.booleans(),
    ),
    max_size=10,
    unique_by=lambda image: image.id,
)


@given(IMAGES, st.integers(-100, 3000))
def test_what_goes_is_unused_and_the_oldest_and_enough(images: list[KeptImage], short: int) -> None:
    gone = superfluous(images, NOW, unused_for=WEEK, bytes_short=short)
    assert len({i.id for i in gone}) == len(gone)
    assert not any(i.in_use or NOW - i.last_used <= timedelta(hours=1) for i in gone)
    assert [i.last_used for i in gone] == sorted(i.last_used for i in gone)
    stays = [i for i in images if i not in gone and not i.in_use]
    assert not any(NOW - i.last_used > WEEK for i in stays)
    removable = [i for i in stays if NOW - i.last_used > timedelta(hours=1)]
    assert not removable or sum(i.size_bytes for i in gone) >= short
    assert all(g.last_used <= s.last_used for g in gone for s in removable)


@given(IMAGES, st.integers(1, 3000))
def test_no_more_recent_image_goes_than_disk_needs(images: list[KeptImage], short: int) -> None:
    gone = superfluous(images, NOW, unused_for=WEEK, bytes_short=short)
    for n, image in enumerate(gone):
        assert NOW - image.last_used > WEEK or sum(i.size_bytes for i in gone[:n]) < short


def test_image_of_which_a_container_is_made_stays_however_full_the_disk() -> None:
    used = KeptImage("a", 10, NOW - 10 * WEEK, in_use=True)
    assert superfluous([used], NOW, unused_for=WEEK, bytes_short=10**12) == []
