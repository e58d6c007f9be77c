"""Grammars compiled for one model's tokens, and kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits

from llmir.engine.structured_output.constraint import tidy
from llmir.engine.structured_output.grammar import grammar_text
from llmir.engine.structured_output.guard import check_apart, is_suspicious
from llmir.engine.structured_output.params import StructuredOutputsParams
from llmir.engine.structured_output.vocabulary import Vocabulary
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import RequestError

CACHED_GRAMMARS = 64

LIMITS = LLParserLimits(max_lexer_states=100_000, verbose_errors=False)
"""States of a lexer take some hundred bytes each, and a grammar keeps them as long as it is cached.
The library's other limits bound the time for a mask to some tens of milliseconds."""


class Grammar:
    """One compiled grammar, of which each output gets a matcher.

    Attributes:
        form: what it was compiled from.

    Raises RequestError with the library's reason where there is none.
    """

    def __init__(self, vocabulary: Vocabulary, text: str, form: StructuredOutputsParams) -> None:
        self.vocabulary = vocabulary
        self.text = text
        self.form = form
        self._pristine = self._compile()
        error = self._pristine.get_error()
        if not error:
            # What the parser cannot bear, or nothing satisfies, shows when it looks for a token.
            self._pristine.compute_bitmask()
            error = self._pristine.get_error()
        if error:
            raise RequestError(f"structured_outputs.{form.kind}: {tidy(error)}")

    def matcher(self) -> LLMatcher:
        """A matcher at the start, which shares with others the states that its lexer has met."""
        return self._pristine.deep_copy()

    def renew(self) -> LLMatcher:
        """A matcher that shares nothing with those before; later ones share with this one."""
        self._pristine = self._compile()
        return self._pristine.deep_copy()

    def _compile(self) -> LLMatcher:
        return LLMatcher(self.vocabulary.llg, self.text, log_level=0, limits=LIMITS)


class GrammarCompiler:
    """Compiles what requests ask for, and keeps the last few.  May be used from any thread.

    A request carries its grammar with it: what is dropped here is not compiled again for it.

    Args:
        tokenizer, vocab_size, eos_ids: as `Vocabulary`, which is made when first needed.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, vocab_size: int, eos_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = tuple(eos_ids)
        self._vocabulary: Vocabulary | None = None
        self._grammars: OrderedDict[StructuredOutputsParams, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, params: StructuredOutputsParams) -> Grammar:
        """The grammar of a request; milliseconds the first time, seconds for the largest.

        Raises RequestError, which names the parameter, for what cannot be compiled.
        """
        with self._lock:
            if params in self._grammars:
                self._grammars.move_to_end(params)
                return self._grammars[params]
            vocabulary = self._get_vocabulary()
        text = grammar_text(params)
        # Not under the lock: a grammar may take long, and the library lets other threads run.
        if is_suspicious(text):
            check_apart(text, params.kind)
        grammar = Grammar(vocabulary, text, params)
        with self._lock:
            self._grammars[params] = grammar
            if len(self._grammars) > CACHED_GRAMMARS:
                self._grammars.popitem(last=False)
        return grammar

    def _get_vocabulary(self) -> Vocabulary:
        if self._tokenizer is None:
            raise RequestError("structured_outputs needs a tokenizer, and this model has none")
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self._tokenizer, self._vocab_size, self._eos_ids)
        return self._vocabulary
