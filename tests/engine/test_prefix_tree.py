"""The prefix tree: what is found, shared, kept and given back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmir.engine.page_pool import PagePool
from llmir.engine.prefix_tree import Node, PrefixTree

PAGE = 2
FULL, WINDOW = None, 3


class Holder:
    """What a sequence does with the tree, and no more: take a prefix, add columns, let go."""

    def __init__(self, tree: PrefixTree, pools: list[PagePool], windows: tuple) -> None:
        self.tree, self.pools, self.windows = tree, pools, windows
        self.held: list[tuple[Node, int]] = []

    def take(self, tokens: list[int]) -> int:
        """Use the cached part; returns its columns."""
        self.nodes = self.tree.match(tokens)
        for group in range(len(self.pools)):
            for node in self.nodes[self.tree.first_needed(group, len(self.nodes)) :]:
                self.tree.acquire(node, group)
                self.held.append((node, group))
        return len(self.nodes)

    def add(self, tokens: list[int]) -> bool:
        """Compute the next column; False if there is no page for it."""
        for group, pool in enumerate(self.pools):
            if pool.num_free + self.tree.num_idle[group] == 0:
                return False
        pages = []
        for group, pool in enumerate(self.pools):
            if pool.num_free == 0:
                self.tree.evict(group)
            pages.append(pool.allocate())
        column = tokens[len(self.nodes) * PAGE : (len(self.nodes) + 1) * PAGE]
        parent = self.nodes[-1] if self.nodes else None
        node = self.tree.add(parent, column, pages)
        assert node.tokens == tuple(column)
        assert all(node.pages)
        self.nodes.append(node)
        self.held += [(node, group) for group in range(len(self.pools))]
        return True

    def let_go(self) -> None:
        for node, group in reversed(self.held):
            self.tree.release(node, group)
        self.held.clear()


def make(*num_pages: int, windows: tuple = (FULL,)) -> tuple[PrefixTree, list[PagePool]]:
    pools = [PagePool(n + 1) for n in num_pages]
    return PrefixTree(pools, windows, PAGE), pools


def compute(tree: PrefixTree, pools: list[PagePool], tokens: list[int]) -> Holder:
    holder = Holder(tree, pools, tree._windows)
    holder.take(tokens)
    while len(holder.nodes) < len(tokens) // PAGE:
        assert holder.add(tokens)
    return holder


def test_whole_pages_of_a_shared_beginning_are_found() -> None:
    tree, pools = make(8)
    compute(tree, pools, [1, 2, 3, 4, 5])
    assert len(tree.match([1, 2, 3, 4, 5, 6])) == 2
    assert len(tree.match([1, 2, 3, 9])) == 1
    assert len(tree.match([1, 2, 3])) == 1
    assert tree.match([1]) == []
    assert tree.match([2, 1]) == []
    assert pools[0].num_free == 6


def test_the_same_column_twice_keeps_one_page() -> None:
    tree, pools = make(8)
    first = compute(tree, pools, [1, 2])
    page = pools[0].allocate()
    assert tree.add(None, [1, 2], [page]) is first.nodes[0]
    assert first.nodes[0].pages != [page]
    assert pools[0].num_free == 7
    assert first.nodes[0].users == [2]


def test_the_least_recently_used_leaf_goes_first() -> None:
    tree, pools = make(4)
    a = compute(tree, pools, [1, 2, 3, 4])
    b = compute(tree, pools, [1, 2, 5, 6])
    b.let_go()
    a.let_go()
    assert tree.num_idle == [3]
    tree.evict(0)
    assert len(tree.match([1, 2, 5, 6])) == 1
    assert len(tree.match([1, 2, 3, 4])) == 2
    tree.evict(0)
    assert len(tree.match([1, 2, 3, 4])) == 1
    tree.evict(0)
    assert tree.num_nodes == 0
    assert pools[0].num_free == 4
    with pytest.raises(AssertionError, match="no page of this group is idle"):
        tree.evict(0)


@pytest.mark.parametrize("windows", [(FULL,), (WINDOW,)])
def test_using_it_for_ever_takes_no_memory(windows: tuple) -> None:
    tree, pools = make(8, windows=windows)
    for _ in range(2000):
        compute(tree, pools, [1, 2, 3, 4, 5, 6]).let_go()
    assert len(tree._idle[0]) <= 2 * 3 + 64
    tree.clear()
    assert pools[0].num_free == 8


def test_a_node_that_somebody_goes_on_from_stays() -> None:
    tree, pools = make(8, windows=(WINDOW,))
    a = compute(tree, pools, [1, 2])
    tree.move_end(None, a.nodes[0])
    a.let_go()
    tree.evict(0)
    assert (tree.num_nodes, pools[0].num_free) == (1, 8)
    assert a.add([1, 2, 3, 4])
    tree.move_end(a.nodes[0], a.nodes[1])
    assert [node.tokens for node in tree.nodes()] == [(1, 2), (3, 4)]
    tree.move_end(a.nodes[1], None)
    a.let_go()
    tree.clear()
    assert tree.num_nodes == 0


def test_what_is_used_stays() -> None:
    tree, pools = make(4)
    a = compute(tree, pools, [1, 2, 3, 4])
    compute(tree, pools, [1, 2, 5, 6]).let_go()
    tree.clear()
    assert len(tree.match([1, 2, 3, 4])) == 2
    assert len(tree.match([1, 2, 5, 6])) == 1
    a.let_go()
    tree.clear()
    assert tree.num_nodes == 0


def test_a_window_gives_up_columns_that_others_keep() -> None:
    tree, pools = make(8, 3, windows=(FULL, WINDOW))
    tokens = [1, 2, 3, 4, 5, 6]
    a = compute(tree, pools, tokens)
    first = a.nodes[0]
    tree.release(first, 1)  # the window has passed it
    a.held.remove((first, 1))
    assert tree.num_idle == [0, 1]
    tree.evict(1)
    assert first.pages[0] != 0
    assert first.pages[1] == 0
    # A window of three reaches from position 6 back to 4, in column 2; of 4, back to column 1.
    assert len(tree.match(tokens)) == 3
    assert len(tree.match(tokens[:4])) == 2
    assert tree.match(tokens[:2]) == []  # position 2 would look at position 0


def test_a_window_alone_leaves_no_empty_nodes() -> None:
    tree, pools = make(6, windows=(WINDOW,))
    compute(tree, pools, [1, 2, 3, 4, 5, 6]).let_go()
    tree.clear()
    assert tree.num_nodes == 0
    assert pools[0].num_free == 6


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    windows=st.sampled_from([(FULL,), (WINDOW,), (FULL, WINDOW), (FULL, 2), (WINDOW, 5)]),
    num_pages=st.integers(1, 10),
    steps=st.lists(st.tuples(st.sampled_from("tal"), st.integers(0, 3), PROMPTS), max_size=60),
)
def test_any_use_of_it(windows: tuple, num_pages: int, steps: list) -> None:
    """Pages are free, idle or used, and nothing is found that was not added."""
    tree, pools = make(*[num_pages] * len(windows), windows=windows)
    holders: dict[int, tuple[Holder, list[int]]] = {}
    added: set[tuple[int, ...]] = set()
    for what, who, tokens in steps:
        if what == "t" and who not in holders:
            holder = Holder(tree, pools, windows)
            columns = holder.take(tokens)
            holders[who] = (holder, tokens)
            for end in range(1, columns + 1):
                assert tuple(tokens[: end * PAGE]) in added
        elif what == "a" and who in holders:
            holder, tokens = holders[who]
            if (len(holder.nodes) + 1) * PAGE <= len(tokens) and holder.add(tokens):
                added.add(tuple(tokens[: len(holder.nodes) * PAGE]))
        elif what == "l" and who in holders:
            holders.pop(who)[0].let_go()
        nodes = list(tree.nodes())
        assert len(nodes) == tree.num_nodes
        for group, pool in enumerate(pools):
            pages = [n.pages[group] for n in nodes if n.pages[group]]
            assert len(set(pages)) == len(pages)
            assert len(pages) + pool.num_free == pool.capacity
            idle = [n for n in nodes if n.pages[group] and not n.users[group]]
            assert tree.num_idle[group] == len(idle)
            held = [n for h, _ in holders.values() for n, g in h.held if g == group]
            assert sum(n.users[group] for n in nodes) == len(held)
    for holder, _ in holders.values():
        holder.let_go()
    tree.clear()
    assert tree.num_nodes == 0
    assert all(pool.num_free == pool.capacity for pool in pools)
