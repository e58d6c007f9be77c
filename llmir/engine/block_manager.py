"""Who holds which KV page.

Each group of layers has a pool of its own.  Page 0 is never handed out: padding
writes go there.  A sequence holds, per group, the pages of its positions in order:

    full attention      [ p7 | p3 | p9 | p4 ]           grows with the sequence
    sliding window      [  0 |  0 | p2 | p5 ]           pages the window left behind are free again

"Column" is an index into such a row of the page table: column c holds positions c*page_size … .

With prefix caching a column belongs to the prefix tree as soon as all of it is computed: whoever
has the same tokens up to there shares it, and it stays when nobody does, until its page is
wanted.  Only the last column of a sequence, which is still being written, is its own.  A column
that two sequences computed at the same time has the same bits twice: one of them is given up.

No page is ever copied.  A shared column is whole, so that nobody writes to it again.  What the
outputs of a request (`n`), or prompts that begin alike, share of a column that is not whole are
fewer than page_size tokens: each computes them again, in the same chunk as the first token of its
own.  To copy them would be a call of the device for each layer, to save a part of that chunk.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmir.engine.page_needs import PageNeeds
from llmir.engine.page_pool import PagePool
from llmir.engine.page_table import PageTable
from llmir.engine.pins import Pins
from llmir.engine.prefix_tree import Node, PrefixTree
from llmir.engine.sequence import Sequence, Status
from llmir.runtime.base import PADDING_PAGE, StepLimits

ColumnKey = tuple[Node, tuple[int, ...]]
"""A column before it is computed: the one before it, and its tokens."""


class BlockManager:
    """Hands out pages to sequences and takes them back; knows nothing of queues.

    Args:
        prefix_caching: keep computed columns in a prefix tree.
        max_chunk: tokens of a sequence in a step, at most.
        reserve_output: a sequence is taken in only if all that it may become fits.

    Attributes:
        table: the pages of each sequence, for a step.
        tree, pins: what is cached, and what of it is kept; None without prefix caching.
        num_queried_tokens: of sequences that were taken in, those that might have been cached.
        num_hit_tokens: those that were.
    """

    def __init__(
        self,
        limits: StepLimits,
        *,
        prefix_caching: bool = False,
        max_chunk: int | None = None,
        reserve_output: bool = False,
    ) -> None:
        assert len(limits.num_pages) == len(limits.group_windows)
        self.page_size = limits.page_size
        self.windows = limits.group_windows
        self.pools = tuple(PagePool(num_pages) for num_pages in limits.num_pages)
        self.tree = PrefixTree(self.pools, self.windows, self.page_size) if prefix_caching else None
        self.table = PageTable(limits)
        chunk = max_chunk or limits.max_num_batched_tokens
        self.needs = PageNeeds(limits, chunk, whole_output=reserve_output)
        self.pins = None
        if self.tree is not None:
            self.pins = Pins(self.tree, self.needs.spare, self.needs.longest)
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0
        self._groups = range(len(self.pools))
        self._windowed = any(window is not None for window in self.windows)

    @property
    def num_free(self) -> tuple[int, ...]:
        """Pages of each group that can be handed out: free ones, and cached ones nobody uses."""
        return tuple(self._num_free(group) for group in self._groups)

    @property
    def num_cached(self) -> tuple[int, ...]:
        """Of those, the cached ones."""
        return (0,) * len(self.pools) if self.tree is None else tuple(self.tree.num_idle)

    @property
    def usage(self) -> float:
        """The part of the pages that cannot be handed out, of the group where it is largest."""
        return max(
            1 - free / pool.capacity for free, pool in zip(self.num_free, self.pools, strict=True)
        )

    @property
    def capacity_tokens(self) -> int | None:
        """The longest sequence that fits alone; None: any length, as every group has a window."""
        return self.needs.capacity_tokens

    def pages(self, seq: Sequence, group: int) -> list[int]:
        """The pages of `seq`, by column; 0 where the page fell out of the group's window."""
        return [] if seq.row is None else self.table.of(group, seq.row, seq.num_columns)

    def num_unused_slots(self, running: Iterable[Sequence]) -> int:
        """Room for tokens in the pages of these sequences that is not used."""
        return sum(seq.num_columns * self.page_size - seq.num_computed_tokens for seq in running)

    def num_cached_columns(self, seq: Sequence) -> int:
        """About how many columns `seq` would begin with."""
        return 0 if self.tree is None else self._deepest(self.tree, seq).depth

    def wanted(self, seq: Sequence) -> ColumnKey | None:
        """The next column that `seq`, which waits, would have from the cache; None: none."""
        if self.tree is None:
            return None
        node = self._deepest(self.tree, seq)
        if (node.depth + 1) * self.page_size > self._cacheable(seq):
            return None
        return node, self._tokens_after(node, seq)

    def computing(self, seq: Sequence) -> ColumnKey | None:
        """The column that `seq`, which runs, adds to the cache next; None: not all of its tokens
        are there yet."""
        if self.tree is None or (len(seq.nodes) + 1) * self.page_size > seq.num_tokens:
            return None
        node = seq.nodes[-1] if seq.nodes else self.tree.root
        return node, self._tokens_after(node, seq)

    def room(self, running: Iterable[Sequence]) -> list[int]:
        """[group] Pages that nobody who runs is going to want, as far as is known."""
        room = list(self.num_free)
        for group, window in enumerate(self.windows):
            if window is None:
                for seq in running:
                    room[group] -= max(0, self._needed(group, seq) - seq.num_columns)
            else:
                # A page that two windows share now is given up by the one, then by the other.
                room[group] = self._capacity(group)
                room[group] -= sum(self._needed(group, seq) for seq in running)
        return room

    def admit(self, seq: Sequence, room: list[int]) -> bool:
        """Take in `seq`, which holds no pages, if it fits: with the cached columns it begins with.

        All its tokens must fit beside what the running sequences still need, so that a prompt is
        not begun only to be thrown out half way.  `room` is less by what it may need then.
        """
        known = self._known(seq)
        needs = []
        for group, window in enumerate(self.windows):
            need = self._needed(group, seq)
            if window is None:
                # What is cached and idle is no longer to be had once this sequence uses it.
                idle = sum(node.users[group] == 0 for node in known)
                need = max(0, need - len(known)) + idle
            if need > room[group]:
                return False
            needs.append(need)
        for group, need in enumerate(needs):
            room[group] -= need
        self._begin(seq, known)
        if seq.status is Status.WAITING:  # what is computed again was asked for once
            self.num_queried_tokens += seq.num_tokens
            self.num_hit_tokens += seq.num_computed_tokens
        return True

    def max_chunk(self, seq: Sequence, want: int) -> int:
        """How many of the next `want` tokens of `seq` the free pages have room for."""
        columns = seq.num_columns + min(self.num_free)
        return max(0, min(want, columns * self.page_size - seq.num_computed_tokens))

    def allocate(self, seq: Sequence, end: int) -> None:
        """Give `seq` the pages of positions before `end`; `max_chunk` said that they are there."""
        if seq.row is None:
            self._begin(seq, [])
        pages = self.table.pages
        for column in range(seq.num_columns, -(-end // self.page_size)):
            for group in self._groups:
                pages[group, seq.row, column] = self._allocate(group)
            seq.num_columns = column + 1

    def advance(self, seq: Sequence) -> None:
        """Note how much of `seq` is computed: cache whole columns, free what no token to come
        will look at, and what was given for tokens that were not computed after all."""
        computed = seq.num_computed_tokens
        if self.tree is not None and len(seq.nodes) < computed // self.page_size:
            self._share(self.tree, seq)
        if self._windowed:
            self._trim(seq)
        while seq.num_columns * self.page_size - computed >= self.page_size:
            self._shorten(seq)

    def free(self, seq: Sequence) -> None:
        """Take back every page of `seq`; it may hold none.  What is cached stays."""
        seq.deepest = None
        if seq.row is None:
            return
        for group in self._groups:
            pages = self.pages(seq, group)
            for column in reversed(range(seq.first_page[group], len(pages))):
                self._give_up(seq, group, column, pages[column])
        if self.tree is not None and seq.nodes:
            self.tree.move_end(seq.nodes[-1], None)
        self.table.give_back(seq.row, seq.num_columns)
        seq.row = None
        seq.num_columns = 0
        seq.first_page = []
        seq.nodes = []

    def _known(self, seq: Sequence) -> list[Node]:
        """The cached columns that `seq` would begin with, were it taken in now."""
        return [] if self.tree is None else self.tree.match(seq.tokens(0, self._cacheable(seq)))

    def _cacheable(self, seq: Sequence) -> int:
        """The tokens that it can have from the cache: it needs the logits of the last, or more."""
        end = seq.num_tokens - 1
        if seq.prompt_rows is not None:
            wanted = seq.prompt_rows.wanted(0, seq.num_tokens)
            end = min(end, wanted.start) if wanted else end
        return end

    def _deepest(self, tree: PrefixTree, seq: Sequence) -> Node:
        """The last column that the tree has of `seq`, whether or not it still has its pages.

        The next look begins where this one ended.
        """
        node = seq.deepest or tree.root
        while not node.attached and node.parent is not None:
            node = node.parent
        while (child := node.children.get(self._tokens_after(node, seq))) is not None:
            node = child
        seq.deepest = node
        return node

    def _tokens_after(self, node: Node, seq: Sequence) -> tuple[int, ...]:
        """The tokens of `seq` in the column after this one; fewer than a page where it ends."""
        start = node.depth * self.page_size
        return tuple(seq.tokens(start, start + self.page_size))

    def _used(self, group: int, known: list[Node]) -> list[Node]:
        """Of the columns that a sequence begins with, those that the group looks at."""
        if self.tree is None:
            return []
        return known[self.tree.first_needed(group, len(known)) :]

    def _begin(self, seq: Sequence, known: list[Node]) -> None:
        """Have `seq` use these columns, which are computed then."""
        seq.row = self.table.take()
        seq.num_columns = len(known)
        seq.nodes = known
        seq.first_page = [0] * len(self.pools)
        for group in self._groups:
            used = self._used(group, known)
            seq.first_page[group] = len(known) - len(used)
            for column, node in enumerate(used, seq.first_page[group]):
                assert self.tree is not None
                self.table.pages[group, seq.row, column] = self.tree.acquire(node, group)
        if self.tree is not None and known:
            self.tree.move_end(None, known[-1])
        seq.num_computed_tokens = len(known) * self.page_size

    def _share(self, tree: PrefixTree, seq: Sequence) -> None:
        """Give the columns that are computed now to the tree."""
        end = seq.nodes[-1] if seq.nodes else None
        for column in range(len(seq.nodes), seq.num_computed_tokens // self.page_size):
            parent = seq.nodes[-1] if seq.nodes else None
            tokens = seq.tokens(column * self.page_size, (column + 1) * self.page_size)
            pages = self.table.pages[:, seq.row, column].tolist()
            node = tree.add(parent, tokens, pages)
            for group, page in enumerate(pages):
                if page != PADDING_PAGE:
                    self.table.pages[group, seq.row, column] = node.pages[group]
            seq.nodes.append(node)
        tree.move_end(end, seq.nodes[-1])

    def _trim(self, seq: Sequence) -> None:
        for group, window in enumerate(self.windows):
            if window is None:
                continue
            # The next token sits at num_computed_tokens and sees `window` positions, its own too.
            first = max(0, seq.num_computed_tokens - window + 1) // self.page_size
            first = min(first, seq.num_columns)
            for column in range(seq.first_page[group], first):
                page = int(self.table.pages[group, seq.row, column])
                self._give_up(seq, group, column, page)
                self.table.pages[group, seq.row, column] = PADDING_PAGE
            seq.first_page[group] = max(seq.first_page[group], first)

    def _shorten(self, seq: Sequence) -> None:
        """Free the last column, of which nothing is computed."""
        seq.num_columns -= 1
        for group in self._groups:
            page = int(self.table.pages[group, seq.row, seq.num_columns])
            self._give_up(seq, group, seq.num_columns, page)
            self.table.pages[group, seq.row, seq.num_columns] = PADDING_PAGE

    def _give_up(self, seq: Sequence, group: int, column: int, page: int) -> None:
        if self.tree is not None and column < len(seq.nodes):
            self.tree.release(seq.nodes[column], group)
        else:
            self.pools[group].free(page)

    def _num_free(self, group: int) -> int:
        idle = 0 if self.tree is None else self.tree.num_idle[group]
        return self.pools[group].num_free + idle

    def _allocate(self, group: int) -> int:
        if self.pools[group].num_free == 0:
            assert self.tree is not None, "max_chunk said that there is a page"
            self.tree.evict(group)
        return self.pools[group].allocate()

    def _needed(self, group: int, seq: Sequence) -> int:
        return min(self.needs.pages(group, seq), self._capacity(group))

    def _capacity(self, group: int) -> int:
        """Pages that are not pinned."""
        pinned = 0 if self.pins is None else self.pins.num_pages[group]
        return self.needs.capacity[group] - pinned
