"""Prefixes that stay in the cache, whoever uses them: a system prompt, before its first request.

A pin is one more user of the columns that a prompt begins with: they are not evicted until it is
taken back.  Pins may not take so much that the longest request that is accepted would not fit
beside them: it would wait for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmir.engine.prefix_tree import Node, PrefixTree
from llmir.errors import RequestError


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PinnedPrefix:
    """What was pinned, to unpin it.

    num_tokens: the prompt's whole pages; what a page is not full of is not kept.
    """

    num_tokens: int
    nodes: list[Node] = field(repr=False)


class Pins:
    """The pins of one prefix tree.

    Args:
        tree: whose columns are pinned.
        spare: [group] pages that all pins may take together.
        longest: tokens of the request that the other pages are for.

    Attributes:
        num_pages: [group] pages that are pinned, those of several pins counted once.
    """

    def __init__(self, tree: PrefixTree, spare: Sequence[int], longest: int) -> None:
        self._tree = tree
        self._spare = spare
        self._longest = longest
        self._pins: set[PinnedPrefix] = set()
        self._num_pins: Counter[tuple[Node, int]] = Counter()
        self.num_pages = [0] * len(spare)

    def check(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens that a pin of this prompt would keep.

        Raises RequestError: there is not one whole page of them, or pins would take too much.
        """
        page_size = self._tree.page_size
        columns = len(token_ids) // page_size
        if columns == 0:
            raise RequestError(
                f"only whole pages are pinned, and the prompt has {len(token_ids)} tokens: fewer "
                f"than one page of {page_size}"
            )
        tokens = list(token_ids[: columns * page_size])
        known = self._tree.match(tokens)
        for group, spare in enumerate(self._spare):
            first = self._tree.first_needed(group, columns)
            pinned = sum((node, group) in self._num_pins for node in known[first:])
            new = columns - first - pinned
            if self.num_pages[group] + new > spare:
                raise RequestError(
                    f"to pin {len(tokens)} tokens takes {new} more pages of {page_size}; "
                    f"{self.num_pages[group]} are pinned, and beside the longest request there may "
                    f"be ({self._longest} tokens) no more than {spare} can be: unpin another "
                    "prefix, or give the cache more memory"
                )
        return tokens

    def pin(self, tokens: list[int]) -> PinnedPrefix:
        """Keep the columns of these tokens, which `check` gave and which were just computed."""
        nodes = self._tree.match(tokens)
        assert len(nodes) * self._tree.page_size == len(tokens), "a part of it is not cached"
        for group, node in self._pages(nodes):
            self._tree.acquire(node, group)
            self._num_pins[node, group] += 1
            self.num_pages[group] += self._num_pins[node, group] == 1
        self._tree.move_end(None, nodes[-1])
        pinned = PinnedPrefix(num_tokens=len(tokens), nodes=nodes)
        self._pins.add(pinned)
        return pinned

    def unpin(self, pinned: PinnedPrefix) -> None:
        """Let the columns go.  Raises RequestError: it was done already, or is another cache's."""
        if pinned not in self._pins:
            raise RequestError(
                f"this prefix of {pinned.num_tokens} tokens is not pinned: it was unpinned, or "
                "pinned in another model"
            )
        self._pins.remove(pinned)
        for group, node in reversed(self._pages(pinned.nodes)):
            self._tree.release(node, group)
            self._num_pins[node, group] -= 1
            if self._num_pins[node, group] == 0:
                del self._num_pins[node, group]
                self.num_pages[group] -= 1
        self._tree.move_end(pinned.nodes[-1], None)

    def _pages(self, nodes: list[Node]) -> list[tuple[int, Node]]:
        """What a sequence that begins with these columns looks at, by group and column."""
        return [
            (group, node)
            for group in range(len(self._spare))
            for node in nodes[self._tree.first_needed(group, len(nodes)) :]
        ]
