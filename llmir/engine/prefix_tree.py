"""Pages that were computed, found by their tokens: a radix tree whose edges are whole pages.

    root ── [t0 … t15] ── [t16 … t31] ── [t32 … t47]
                      └── [u16 … u31]                   two prompts that begin alike

A node is one column: for each group of layers the page that holds its positions, or 0 where
there is none any more.  Sequences use nodes and share their pages; what nobody uses stays until
its page is wanted, the least recently used first.  A group with full attention needs every
column of a prefix, so that there only leaves are evicted; one with a sliding window needs the
last ones alone, and gives up any column that nobody uses.

After RadixAttention (Zheng et al., SGLang, 2024), with pages in the place of tokens.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmir.engine.page_pool import PagePool
from llmir.runtime.base import PADDING_PAGE


@dataclass(slots=True, eq=False)
class Node:
    """One page of tokens after its parent's.

    pages:      [group] the page of this column, PADDING_PAGE if there is none
    users:      [group] how many sequences and pins use it
    last_used:  [group] the tree's clock when the last user let go
    ends:       how many sequences and pins have this as their last column: the node stays in the
                tree for what comes after it, also when a window has left all of its pages behind
    depth:      columns from the root to this one, itself too
    attached:   False once the node is no longer in the tree
    """

    parent: Node | None
    tokens: tuple[int, ...]
    pages: list[int]
    users: list[int]
    last_used: list[int]
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)
    ends: int = 0
    depth: int = 0
    attached: bool = True


class PrefixTree:
    """Owns the pages of its nodes; gives them back to their pools when it evicts.

    Attributes:
        num_idle: [group] pages that nobody uses: all of them can be evicted.
        root: the node before the first column.
        num_nodes: nodes, the root not counted.
    """

    def __init__(
        self, pools: Sequence[PagePool], windows: Sequence[int | None], page_size: int
    ) -> None:
        self.page_size = page_size
        self.num_idle = [0] * len(pools)
        self.num_nodes = 0
        self._pools = pools
        self._windows = windows
        self._groups = range(len(pools))
        self.root = self._node(None, ())
        self._clock = 0
        # [group] (last_used, number, node) of what may be evicted; entries may be out of date.
        self._idle: list[list[tuple[int, int, Node]]] = [[] for _ in pools]
        self._numbers = itertools.count()

    # -- finding ---------------------------------------------------------------------------

    def match(self, tokens: Sequence[int]) -> list[Node]:
        """The columns of the longest prefix of `tokens` that can be attended to."""
        nodes: list[Node] = []
        node, usable = self.root, 0
        # [group] columns in a row, up to this one, that have their page
        unbroken = [0] * len(self._pools)
        for column in range(len(tokens) // self.page_size):
            start = column * self.page_size
            child = node.children.get(tuple(tokens[start : start + self.page_size]))
            if child is None:
                break
            node = child
            nodes.append(node)
            for group in self._groups:
                unbroken[group] = unbroken[group] + 1 if node.pages[group] else 0
            if all(
                unbroken[group] >= column + 1 - self.first_needed(group, column + 1)
                for group in self._groups
            ):
                usable = column + 1
        return nodes[:usable]

    def first_needed(self, group: int, columns: int) -> int:
        """The first column that the token after `columns` whole ones attends to."""
        window = self._windows[group]
        if window is None:
            return 0
        return max(0, columns * self.page_size - window + 1) // self.page_size

    # -- using -----------------------------------------------------------------------------

    def acquire(self, node: Node, group: int) -> int:
        """Use a node's page, which is returned; it is not evicted until it is released."""
        assert node.pages[group] != PADDING_PAGE, "the node has no page for this group"
        if node.users[group] == 0:
            self.num_idle[group] -= 1
        node.users[group] += 1
        return node.pages[group]

    def release(self, node: Node, group: int) -> None:
        """One user fewer."""
        assert node.users[group] > 0, "released more often than acquired"
        node.users[group] -= 1
        if node.users[group] == 0:
            self._clock += 1
            node.last_used[group] = self._clock
            self.num_idle[group] += 1
            self._offer(node, group)

    def move_end(self, before: Node | None, after: Node | None) -> None:
        """Note that who had `before` as its last column has `after` now; None: no column."""
        if after is not None:
            after.ends += 1
        if before is not None:
            assert before.ends > 0, "the end of nobody"
            before.ends -= 1
            self._remove_empty(before)

    def add(self, parent: Node | None, tokens: Sequence[int], pages: Sequence[int]) -> Node:
        """Take over the pages of one column, which the caller uses from now on.

        parent:  the column before it; None: there is none
        pages:   [group] the caller's own pages, PADDING_PAGE where it has none
        Returns the column, whose pages are the caller's; or, where it was known already, the
        tree's, and the caller's are free then.
        """
        parent = parent or self.root
        key = tuple(tokens)
        node = parent.children.get(key)
        if node is None:
            node = self._node(parent, key)
            parent.children[key] = node
            self.num_nodes += 1
        for group, page in enumerate(pages):
            if page == PADDING_PAGE:
                continue
            if node.pages[group] == PADDING_PAGE:
                node.pages[group] = page
                self.num_idle[group] += 1  # until it is acquired
            else:
                self._pools[group].free(page)
            self.acquire(node, group)
        return node

    # -- evicting --------------------------------------------------------------------------

    def evict(self, group: int) -> None:
        """Give one page of a group, that nobody uses, back to its pool; num_idle says if any."""
        heap = self._idle[group]
        while heap:
            entry = heapq.heappop(heap)
            if self._is_current(entry, group):
                node = entry[2]
                break
        else:
            raise AssertionError("no page of this group is idle")
        if self._windows[group] is not None:
            self._drop_page(node, group)
        else:
            for each in self._groups:
                if node.pages[each] != PADDING_PAGE:
                    self._drop_page(node, each)
        self._remove_empty(node)

    def clear(self) -> None:
        """Evict all that nobody uses."""
        for group in self._groups:
            while self.num_idle[group]:
                self.evict(group)

    def nodes(self) -> Iterator[Node]:
        """Every node, parents first."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _node(self, parent: Node | None, tokens: tuple[int, ...]) -> Node:
        groups = len(self._pools)
        depth = 0 if parent is None else parent.depth + 1
        pages = [PADDING_PAGE] * groups
        return Node(parent, tokens, pages, [0] * groups, [0] * groups, depth=depth)

    def _is_evictable(self, node: Node, group: int) -> bool:
        if node.users[group] or node.pages[group] == PADDING_PAGE:
            return False
        return self._windows[group] is not None or not node.children

    def _offer(self, node: Node, group: int) -> None:
        if not self._is_evictable(node, group):
            return
        heap = self._idle[group]
        heapq.heappush(heap, (node.last_used[group], next(self._numbers), node))
        if len(heap) > 2 * self.num_nodes + 64:
            # Where nothing has to be evicted nobody else takes out what is out of date.
            heap[:] = [entry for entry in heap if self._is_current(entry, group)]
            heapq.heapify(heap)

    def _is_current(self, entry: tuple[int, int, Node], group: int) -> bool:
        last_used, _, node = entry
        return last_used == node.last_used[group] and self._is_evictable(node, group)

    def _drop_page(self, node: Node, group: int) -> None:
        assert node.users[group] == 0, "a page that somebody uses"
        self._pools[group].free(node.pages[group])
        node.pages[group] = PADDING_PAGE
        self.num_idle[group] -= 1

    def _remove_empty(self, node: Node) -> None:
        """Forget a leaf without pages, and then its parents that are such."""
        while node.parent and not (node.ends or node.children or any(node.pages)):
            parent = node.parent
            del parent.children[node.tokens]
            node.attached = False
            self.num_nodes -= 1
            for group in self._groups:
                if self._windows[group] is None:
                    self._offer(parent, group)
            node = parent
