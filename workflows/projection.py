"""Numbers of the rows that workflows write about themselves; the database keeps the row with the highest."""

from temporalio import workflow

_ROWS_PER_EVENT = 16
"""More than a workflow writes within one task."""


class Numbers:
    """Higher than those of all rows written before, also of those that this workflow does not remember.

    A local activity is forgotten when its workflow task is discarded: the worker died, or news came just when the
    workflow went on as new. The task that takes its place may know more, and must not reuse the number. But Temporal
    has noted the discarded task, so the history is longer now.
    """

    def __init__(self, last: int) -> None:
        """``last``: of the run before."""
        self._base = last

    def after(self, last: int) -> int:
        return max(last + 1, self._base + _ROWS_PER_EVENT * workflow.info().get_current_history_length())
