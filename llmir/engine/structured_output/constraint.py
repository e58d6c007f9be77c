"""The tokens that may come next in one output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

from llmir.engine.outputs import FinishReason

if TYPE_CHECKING:
    from llmir.engine.structured_output.compiler import Grammar

I32 = NDArray[np.int32]

ERROR_CHARACTERS = 500


class Constraint:
    """Where one output stands in its grammar: a function of the output's tokens.

    Preemption changes nothing here, for the tokens stay.

    Args:
        grammar: what the output must be.
        token_ids: the output's tokens, a list that its owner appends to.
        eos_ids, stop_ids: the model's and the request's own ids that end an output.  Where it
            may end, the stop ids are allowed besides what the grammar allows, and so are
            the EOS ids unless `ignore_eos`.
        min_tokens: no such id before this many tokens.  Neither this nor ignore_eos makes a
            complete output go on.

    Attributes:
        failure: why nothing more can be said about this output; None: all is well.
    """

    def __init__(
        self,
        grammar: Grammar,
        token_ids: Sequence[int],
        *,
        eos_ids: Sequence[int],
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self.failure: str | None = None
        self.matcher = grammar.matcher()
        self._grammar = grammar
        self._token_ids = token_ids
        vocabulary = grammar.vocabulary
        ignored = set(eos_ids).difference(stop_ids) if ignore_eos else set()
        self._end_ids = sorted({*eos_ids, *stop_ids} - ignored)
        # The library allows the EOS ids that it knows, and nothing else that ends.
        self._added_ids = sorted(set(self._end_ids).difference(vocabulary.eos_ids))
        self._never_ids = sorted(ignored.union(vocabulary.never_ids))
        self._min_tokens = min_tokens
        self._mask: I32 | None = None

    @property
    def num_words(self) -> int:
        """32-bit words of a mask."""
        return self._grammar.vocabulary.num_words

    @property
    def complete(self) -> bool:
        """Whether the output is all that the grammar asks for, and nothing may follow."""
        return self.failure is None and self.matcher.is_stopped()

    def finish(self) -> tuple[FinishReason, str | None]:
        """finish_reason and stop_reason of an output to which nothing more can be added."""
        return ("stop", None) if self.failure is None else ("error", self.failure)

    def accept(self, token_id: int) -> None:
        """Go on by a token that was allowed, and has been appended; may set `failure`."""
        self._mask = None
        if not self.matcher.consume_token(token_id):
            self._start_again()

    def validate(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens may follow, one after the other.  Changes nothing."""
        return int(self.matcher.validate_tokens(list(token_ids)))

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens that were accepted; the output no longer has them."""
        self._mask = None
        if not self.matcher.rollback(num_tokens):
            self._start_again()

    def set_mask(self, mask: I32) -> None:
        """Use this as the mask that `matcher` gives now."""
        self._mask = mask

    def allowed(self, vocab_size: int) -> NDArray[np.int64]:
        """Ids that may be sampled now, rising, int64 [A].

        None at all: the output ends here, complete, or because of `failure`.
        """
        if self._mask is None:
            self._compute_mask()
        if self.matcher.is_error():
            self._start_again()
            self._compute_mask()
        if self.matcher.is_error():
            self._fail()
        if self.failure is not None:
            return np.empty(0, np.int64)
        assert self._mask is not None
        bits = np.unpackbits(self._mask.view(np.uint8), count=vocab_size, bitorder="little")
        allowed_V = bits.view(np.bool_)
        if self._added_ids and self.matcher.is_accepting():
            allowed_V[self._added_ids] = True
        allowed_V[self._never_ids] = False
        if len(self._token_ids) < self._min_tokens:
            allowed_V[self._end_ids] = False
        ids = np.flatnonzero(allowed_V)
        if len(ids) == 0 and not self.matcher.is_accepting():
            self.failure = "no token of this model goes on with the output"
        return ids

    def _compute_mask(self) -> None:
        mask = np.empty((1, self.num_words), np.int32)
        fill_next_token_bitmask(self.matcher, mask)
        self._mask = mask[0]

    def _start_again(self) -> None:
        """Come to the same place with a matcher of its own.

        Copies of a matcher share the states of its lexer, and all of them fail when others'
        outputs have made those too many; nobody's output may depend on that.
        """
        self.matcher = self._grammar.renew()
        if not self.matcher.consume_tokens(list(self._token_ids)):
            self._fail()

    def _fail(self) -> None:
        self.failure = tidy(self.matcher.get_error())


def tidy(error: str) -> str:
    """What the library says, without its note on how little it says, and not pages of it."""
    error = error.replace("<non-verbose/>", "").strip()
    return error if len(error) <= ERROR_CHARACTERS else error[:ERROR_CHARACTERS] + " …"
