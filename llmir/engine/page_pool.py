"""The KV pages of one group of layers."""

from __future__ import annotations

from llmir.runtime.base import PADDING_PAGE


class PagePool:
    """Which pages are free.  Freed ones are handed out again first: they are warm."""

    def __init__(self, num_pages: int) -> None:
        self.capacity = num_pages - 1  # the padding page is not ours to give
        self._free = [page for page in range(num_pages - 1, -1, -1) if page != PADDING_PAGE]
        self._held: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        page = self._free.pop()
        self._held.add(page)
        return page

    def free(self, page: int) -> None:
        self._held.remove(page)  # a KeyError here is a page freed twice
        self._free.append(page)
