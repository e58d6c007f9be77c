"""Who holds which KV page.

Each group of layers has a pool of its own.  Page 0 is never handed out: padding
writes go there.  A sequence holds, per group, the pages of its positions in order:

    full attention      [ p7 | p3 | p9 | p4 ]           grows with the sequence
    sliding window      [  0 |  0 | p2 | p5 ]           pages the window left behind are free again

"Column" is an index into such a list: column c holds positions c*page_size … .
"""

from __future__ import annotations

from collections.abc import Iterable

from llmir.engine.sequence import Sequence
from llmir.runtime.base import PADDING_PAGE, StepLimits


class PagePool:
    """The pages of one group.  Freed pages are handed out again first: they are warm."""

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


class BlockManager:
    """Hands out pages to sequences and takes them back; knows nothing of queues."""

    def __init__(self, limits: StepLimits) -> None:
        assert len(limits.num_pages) == len(limits.group_windows)
        self.page_size = limits.page_size
        self.windows = limits.group_windows
        self.pools = tuple(PagePool(num_pages) for num_pages in limits.num_pages)

    @property
    def num_free(self) -> tuple[int, ...]:
        """Free pages of each group."""
        return tuple(pool.num_free for pool in self.pools)

    @property
    def capacity_tokens(self) -> int | None:
        """The longest sequence that fits alone; None: any length, as every group has a window."""
        longest: int | None = None
        for group, pool in enumerate(self.pools):
            window_pages = self._window_pages(group)
            if window_pages is None or window_pages > pool.capacity:
                fits = pool.capacity * self.page_size
                longest = fits if longest is None else min(longest, fits)
        return longest

    def admits(self, seq: Sequence, chunk: int, running: Iterable[Sequence]) -> bool:
        """Whether `seq`, which holds no pages, can be taken in.

        All its tokens must fit beside what the running sequences still need for tokens they
        already have, so that a prompt is not begun only to be thrown out half way.
        """
        needs = [self._needed(group, seq, chunk) for group in range(len(self.pools))]
        for other in running:
            for group in range(len(self.pools)):
                held = len(other.pages[group]) - other.first_page[group]
                needs[group] += max(0, self._needed(group, other, chunk) - held)
        return all(need <= pool.num_free for need, pool in zip(needs, self.pools, strict=True))

    def max_chunk(self, seq: Sequence, want: int) -> int:
        """How many of the next `want` tokens of `seq` the free pages have room for."""
        end = seq.num_computed_tokens + want
        for group, pool in enumerate(self.pools):
            columns = len(seq.pages[group]) if seq.pages else 0
            end = min(end, (columns + pool.num_free) * self.page_size)
        return max(0, end - seq.num_computed_tokens)

    def allocate(self, seq: Sequence, end: int) -> None:
        """Give `seq` the pages of positions before `end`; `max_chunk` said that they are there."""
        if not seq.pages:
            seq.pages = [[] for _ in self.pools]
            seq.first_page = [0] * len(self.pools)
        columns = -(-end // self.page_size)
        for pages, pool in zip(seq.pages, self.pools, strict=True):
            while len(pages) < columns:
                pages.append(pool.allocate())

    def trim(self, seq: Sequence) -> None:
        """Free the pages that no token to come will look at."""
        for group, window in enumerate(self.windows):
            if window is None:
                continue
            # The next token sits at num_computed_tokens and sees `window` positions, its own too.
            first = max(0, seq.num_computed_tokens - window + 1) // self.page_size
            pages = seq.pages[group]
            for column in range(seq.first_page[group], min(first, len(pages))):
                self.pools[group].free(pages[column])
                pages[column] = PADDING_PAGE
            seq.first_page[group] = max(seq.first_page[group], min(first, len(pages)))

    def free(self, seq: Sequence) -> None:
        """Take back every page of `seq`; it may hold none."""
        for group, pages in enumerate(seq.pages):
            for page in reversed(pages[seq.first_page[group] :]):
                self.pools[group].free(page)
        seq.pages = []
        seq.first_page = []

    def _window_pages(self, group: int) -> int | None:
        """Pages that a window can touch, wherever it begins; None for full attention."""
        window = self.windows[group]
        if window is None:
            return None
        return (window + self.page_size - 2) // self.page_size + 1

    def _needed(self, group: int, seq: Sequence, chunk: int) -> int:
        """Pages that `seq` holds at most while its present tokens are computed."""
        columns = -(-seq.num_tokens // self.page_size)
        window_pages = self._window_pages(group)
        if window_pages is not None:
            columns = min(columns, window_pages + -(-chunk // self.page_size))
        # A chunk shrinks to the pages there are, so more than the pool is never needed.
        return min(columns, self.pools[group].capacity)
