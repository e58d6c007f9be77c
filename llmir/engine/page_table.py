"""Which pages each sequence holds, in the form that a step wants them.

Shape legend: G groups of layers, R rows, P columns.

A sequence that holds pages has a row from its first page to its last.  A row changes when a page
does, once in page_size tokens, so that a step only has to gather rows.
"""

from __future__ import annotations

import numpy as np

from llmir.runtime.base import I32, PADDING_PAGE, StepLimits


class PageTable:
    """Rows of pages, int32 [G, R, P]; PADDING_PAGE where a sequence has none.

    Attributes:
        pages: for the block manager to write.
        page_size: tokens of a page.
    """

    def __init__(self, limits: StepLimits) -> None:
        self.page_size = limits.page_size
        columns = -(-limits.max_model_len // limits.page_size)
        # Memory is taken when a row is first written: most of this never is.
        self.pages = np.zeros((len(limits.num_pages), limits.max_num_seqs, columns), np.int32)
        self._free = list(reversed(range(limits.max_num_seqs)))

    def take(self) -> int:
        """A row without pages."""
        return self._free.pop()

    def give_back(self, row: int, columns: int) -> None:
        """Take a row back, of which the first columns may have been written."""
        self.pages[:, row, :columns] = PADDING_PAGE
        self._free.append(row)

    def of(self, group: int, row: int, columns: int) -> list[int]:
        """The first columns of a row."""
        pages: list[int] = self.pages[group, row, :columns].tolist()
        return pages

    def gather(self, rows: list[int], columns: int) -> I32:
        """The first columns of these rows, int32 [G, len(rows), columns]; a copy."""
        return np.ascontiguousarray(self.pages[:, rows, :columns])
