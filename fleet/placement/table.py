"""Columns of equal length in numpy, whose rows are used again. Pure."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Column = NDArray[Any]


class Table:
    """A row that nobody has added, or that was dropped, holds zeros in each column."""

    def __init__(self, columns: dict[str, type], capacity: int) -> None:
        self._columns: dict[str, Column] = {name: np.zeros(capacity, dtype) for name, dtype in columns.items()}
        self._unused = list(range(capacity - 1, -1, -1))
        self.size = capacity

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def add(self, count: int) -> Ints:
        """Rows to write to, in rising order where the table is new."""
        if count > len(self._unused):
            self._grow(count - len(self._unused))
        return np.array([self._unused.pop() for _ in range(count)], dtype=np.int64)

    def drop(self, rows: Ints) -> None:
        for column in self._columns.values():
            column[rows] = 0
        self._unused.extend(int(row) for row in rows[::-1])

    def copy(self) -> "Table":
        twin = object.__new__(Table)
        twin._columns = {name: column.copy() for name, column in self._columns.items()}
        twin._unused = self._unused.copy()
        twin.size = self.size
        return twin

    def _grow(self, missing: int) -> None:
        more = max(missing, self.size // 4)
        for name, column in self._columns.items():
            self._columns[name] = np.concatenate([column, np.zeros(more, column.dtype)])
        self._unused = [*range(self.size + more - 1, self.size - 1, -1), *self._unused]
        self.size += more
