"""How many pages a sequence needs: sums of the limits alone, whoever holds what.

A group with full attention needs a page for every column of a sequence.  One with a sliding
window needs those that the window touches, and those of the chunk that is being computed.
"""

from __future__ import annotations

from llmir.engine.sequence import Sequence
from llmir.runtime.base import StepLimits


class PageNeeds:
    """What the pools are asked for.

    Args:
        limits: the pools.
        chunk: tokens of a sequence in a step, at most.
        whole_output: count all tokens that a sequence may ever have, not those that it has.

    Attributes:
        capacity: [group] pages there are.
    """

    def __init__(self, limits: StepLimits, chunk: int, whole_output: bool) -> None:
        self.capacity = tuple(num_pages - 1 for num_pages in limits.num_pages)  # no padding page
        self._page_size = limits.page_size
        self._windows = limits.group_windows
        self._max_model_len = limits.max_model_len
        self._chunk_pages = -(-chunk // limits.page_size)
        self._whole_output = whole_output

    def pages(self, group: int, seq: Sequence) -> int:
        """Pages of a group that `seq` holds at most; it may be more than there are, and then a
        chunk shrinks to those."""
        tokens = seq.num_tokens + len(seq.drafts)
        if self._whole_output:
            # The last token is never fed back.
            tokens = len(seq.prompt_token_ids) + max(0, seq.max_tokens - 1)
        columns = -(-tokens // self._page_size)
        window_pages = self.window_pages(group)
        if window_pages is None:
            return columns
        return min(columns, window_pages + self._chunk_pages)

    def window_pages(self, group: int) -> int | None:
        """Pages that a window can touch, wherever it begins; None for full attention."""
        window = self._windows[group]
        if window is None:
            return None
        return (window + self._page_size - 2) // self._page_size + 1

    @property
    def capacity_tokens(self) -> int | None:
        """The longest sequence that fits alone; None: any length, as every group has a window."""
        longest: int | None = None
        for group, capacity in enumerate(self.capacity):
            window_pages = self.window_pages(group)
            if window_pages is None or window_pages > capacity:
                fits = capacity * self._page_size
                longest = fits if longest is None else min(longest, fits)
        return longest

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is served."""
        return min(self._max_model_len, self.capacity_tokens or self._max_model_len)

    @property
    def spare(self) -> list[int]:
        """[group] Pages that the longest sequence leaves, alone and in chunks of a token."""
        columns = -(-self.longest // self._page_size)
        return [
            capacity - min(columns, self.window_pages(group) or columns)
            for group, capacity in enumerate(self.capacity)
        ]
