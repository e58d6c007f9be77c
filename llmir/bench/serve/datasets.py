"""Requests with lengths of a stated distribution, made from a seed; nothing is downloaded.

    random             input and output lengths uniform around what is asked for, after a prefix
                       that all share
    sharegpt           lengths of conversations: log-normal
    prefix_repetition  groups of requests, each with a prefix of its own

Prompts are tokens of ordinary words, drawn uniformly: two prompts share nothing but what a
dataset means them to share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmir.bench.serve.words import WORDS
from llmir.errors import OptionError

Ints = NDArray[np.int64]
Prompt = list[int] | str

# ShareGPT's mean input and output in tokens, as the paper on PagedAttention (Kwon et al.,
# SOSP 2023, 6.1) has them.  It gives no spread: these sigmas, of the logarithm, are ours.  The
# limits are those that vLLM's benchmark applies to the dataset.
SHAREGPT_INPUT_MEAN, SHAREGPT_INPUT_SIGMA = 161.31, 1.4
SHAREGPT_OUTPUT_MEAN, SHAREGPT_OUTPUT_SIGMA = 337.99, 0.9
SHAREGPT_LEAST, SHAREGPT_MOST_INPUT, SHAREGPT_MOST = 4, 1024, 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One request: a prompt, as token ids or as text, and how many tokens are to come.

    input_len  tokens of the prompt; of a text, its words, which have about a token each
    """

    prompt: Prompt
    input_len: int
    output_len: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What prompts are drawn from: token ids, or words where the server takes text alone."""

    items: Sequence[int] | Sequence[str]

    @classmethod
    def of_words(cls) -> Vocabulary:
        return cls(WORDS)

    @classmethod
    def of_tokenizer(cls, encode: Callable[[str], Sequence[int]]) -> Vocabulary:
        """The ids that ordinary words have.  encode: without special tokens."""
        return cls(sorted(set(encode(" " + " ".join(WORDS)))))

    def draw(self, count: int, rng: np.random.Generator) -> list[Any]:
        """`count` of them, independent and uniform."""
        return [self.items[i] for i in rng.integers(len(self.items), size=count)]

    def prompt(self, items: list[Any]) -> Prompt:
        """Items that were drawn, as a prompt."""
        return " ".join(items) if isinstance(self.items[0], str) else items


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomDataset:
    """prefix_len shared tokens, then input_len ± range_ratio own ones; output_len ± range_ratio.

    Lengths are uniform over the whole numbers from len · (1 − r), rounded down, to
    len · (1 + r), rounded up; at least one.
    """

    input_len: int = 1024
    output_len: int = 128
    range_ratio: float = 0.0
    prefix_len: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.range_ratio < 1:
            raise OptionError(
                f"the range ratio must be at least 0 and below 1, not {self.range_ratio:g}"
            )
        _at_least(1, input_len=self.input_len, output_len=self.output_len)
        _at_least(0, prefix_len=self.prefix_len)

    def make(
        self, count: int, vocabulary: Vocabulary, rng: np.random.Generator
    ) -> list[SampleRequest]:
        prefix = vocabulary.draw(self.prefix_len, rng)
        inputs = self._lengths(self.input_len, count, rng)
        outputs = self._lengths(self.output_len, count, rng)
        return [
            _request(vocabulary, prefix, int(own), int(out), rng)
            for own, out in zip(inputs, outputs, strict=True)
        ]

    def _lengths(self, length: int, count: int, rng: np.random.Generator) -> Ints:
        low = max(1, math.floor(length * (1 - self.range_ratio)))
        high = max(low, math.ceil(length * (1 + self.range_ratio)))
        return rng.integers(low, high, size=count, endpoint=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareGptDataset:
    """Lengths like those of ShareGPT's conversations.

    Log-normal, with the means above before they are cut: a pair is drawn again until the input
    has SHAREGPT_LEAST … SHAREGPT_MOST_INPUT tokens, the output at least SHAREGPT_LEAST, and both
    together no more than SHAREGPT_MOST.
    """

    def make(
        self, count: int, vocabulary: Vocabulary, rng: np.random.Generator
    ) -> list[SampleRequest]:
        found: list[tuple[int, int]] = []
        while len(found) < count:
            inputs = _log_normal(SHAREGPT_INPUT_MEAN, SHAREGPT_INPUT_SIGMA, count, rng)
            outputs = _log_normal(SHAREGPT_OUTPUT_MEAN, SHAREGPT_OUTPUT_SIGMA, count, rng)
            found += [
                (int(i), int(o))
                for i, o in zip(inputs, outputs, strict=True)
                if SHAREGPT_LEAST <= i <= SHAREGPT_MOST_INPUT
                and o >= SHAREGPT_LEAST
                and i + o <= SHAREGPT_MOST
            ]
        return [_request(vocabulary, [], own, out, rng) for own, out in found[:count]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRepetitionDataset:
    """num_prefixes groups of the same size, shuffled: a prefix of the group, then own tokens."""

    prefix_len: int = 256
    suffix_len: int = 256
    num_prefixes: int = 10
    output_len: int = 128

    def __post_init__(self) -> None:
        _at_least(1, prefix_len=self.prefix_len, num_prefixes=self.num_prefixes)
        _at_least(1, suffix_len=self.suffix_len, output_len=self.output_len)

    def make(
        self, count: int, vocabulary: Vocabulary, rng: np.random.Generator
    ) -> list[SampleRequest]:
        prefixes = [vocabulary.draw(self.prefix_len, rng) for _ in range(self.num_prefixes)]
        groups = rng.permutation(np.arange(count) % self.num_prefixes)
        return [
            _request(vocabulary, prefixes[group], self.suffix_len, self.output_len, rng)
            for group in groups
        ]


Dataset = RandomDataset | ShareGptDataset | PrefixRepetitionDataset


def make_requests(
    dataset: Dataset, count: int, vocabulary: Vocabulary, seed: int, warmups: int = 0
) -> tuple[list[SampleRequest], list[SampleRequest]]:
    """`count` requests and the warm-ups before them: others of the same dataset.

    So a warm-up has the prefixes of the measured requests, and nothing else of them.
    """
    rng = np.random.default_rng(seed)
    made = dataset.make(count + warmups, vocabulary, rng)
    return made[:count], made[count:]


def _request(
    vocabulary: Vocabulary,
    prefix: list[Any],
    own: int,
    output_len: int,
    rng: np.random.Generator,
) -> SampleRequest:
    return SampleRequest(
        prompt=vocabulary.prompt(prefix + vocabulary.draw(own, rng)),
        input_len=len(prefix) + own,
        output_len=output_len,
    )


def _log_normal(mean: float, sigma: float, count: int, rng: np.random.Generator) -> Ints:
    # The mean of a log-normal distribution is exp(mu + sigma² / 2).
    mu = math.log(mean) - sigma**2 / 2
    return np.rint(rng.lognormal(mu, sigma, size=count)).astype(np.int64)


def _at_least(least: int, **lengths: int) -> None:
    for name, value in lengths.items():
        if value < least:
            raise OptionError(f"{name} must be at least {least}, not {value}")
