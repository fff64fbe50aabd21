"""Lists, a page at a time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.management.paging import has_labels, page


@settings(deadline=None)
@given(st.lists(st.text(), unique=True, max_size=30), st.integers(1, 10))
def test_every_row_is_shown_once_whatever_order_the_database_has(rows: list[str], limit: int) -> None:
    shown: list[str] = []
    cursor = None
    for _ in range(len(rows) + 1):
        found = page(rows, limit, cursor, lambda row: row, lambda row: row)
        shown += found.items
        assert len(found.items) <= limit
        cursor = found.next_cursor
        if cursor is None:
            break
    assert shown == sorted(rows)


def test_row_that_goes_away_between_pages_costs_nobody_else() -> None:
    first = page(["a", "b", "c", "d"], 2, None, str, str)
    second = page(["a", "c", "d"], 2, first.next_cursor, str, str)
    assert (first.items, second.items, second.next_cursor) == (["a", "b"], ["c", "d"], None)


def test_last_page_has_no_cursor() -> None:
    assert page(["a", "b"], 2, None, str, str).next_cursor is None
    assert page([], 2, "z", str, str).items == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, True),
        ([], True),
        (["team=ml"], True),
        (["team=ml", "tier=1"], True),
        (["team=ml", "tier=2"], False),
        (["team=a=b"], False),
        (["team"], False),
        (["owner=x"], False),
    ],
)
def test_all_labels_must_fit(wanted: list[str] | None, found: bool) -> None:
    assert has_labels({"team": "ml", "tier": "1"}, wanted) is found
