"""Generated requests: lengths, what is shared, seeds."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from llmir.bench.serve import datasets
from llmir.bench.serve.datasets import (
    Dataset,
    PrefixRepetitionDataset,
    RandomDataset,
    SampleRequest,
    ShareGptDataset,
    Vocabulary,
    make_requests,
)
from llmir.bench.serve.words import WORDS
from llmir.errors import OptionError

IDS = Vocabulary(range(100, 900))
ALL: list[Dataset] = [
    RandomDataset(input_len=20, output_len=8, range_ratio=0.5, prefix_len=4),
    ShareGptDataset(),
    PrefixRepetitionDataset(prefix_len=12, suffix_len=5, num_prefixes=3, output_len=8),
]


def make(dataset: Dataset, count: int, seed: int = 0) -> list[SampleRequest]:
    return make_requests(dataset, count, IDS, seed)[0]


@pytest.mark.parametrize("dataset", ALL, ids=lambda d: type(d).__name__)
def test_prompts_have_their_lengths_and_come_again_from_the_seed(dataset: Dataset) -> None:
    requests = make(dataset, 40, seed=3)
    assert len(requests) == 40
    assert all(len(r.prompt) == r.input_len for r in requests)
    assert all(set(r.prompt) <= set(IDS.items) for r in requests)
    assert make(dataset, 40, seed=3) == requests
    assert make(dataset, 40, seed=4) != requests


def test_random_lengths_are_uniform_around_what_is_asked_for() -> None:
    requests = make(RandomDataset(input_len=100, output_len=10, range_ratio=0.2), 4000)
    inputs = Counter(r.input_len for r in requests)
    assert (min(inputs), max(inputs)) == (80, 120)
    assert np.mean([r.input_len for r in requests]) == pytest.approx(100, rel=0.01)
    # 41 lengths, about 98 of each.
    assert min(inputs.values()) > 50
    assert {r.output_len for r in requests} == {8, 9, 10, 11, 12}


def test_random_without_a_ratio_is_exact() -> None:
    requests = make(RandomDataset(input_len=35, output_len=64, prefix_len=256), 10)
    assert {(r.input_len, r.output_len) for r in requests} == {(291, 64)}


def test_requests_share_the_prefix_and_nothing_else() -> None:
    dataset = RandomDataset(input_len=35, output_len=1, prefix_len=64)
    requests, warmups = make_requests(dataset, 20, IDS, 0, warmups=5)
    assert len(warmups) == 5
    assert len({tuple(r.prompt[:64]) for r in (*requests, *warmups)}) == 1
    assert len({tuple(r.prompt[64:80]) for r in (*requests, *warmups)}) == 25


def test_groups_have_a_prefix_each() -> None:
    dataset = PrefixRepetitionDataset(prefix_len=12, suffix_len=9, num_prefixes=3, output_len=7)
    requests = make(dataset, 30)
    groups = Counter(tuple(r.prompt[:12]) for r in requests)
    assert sorted(groups.values()) == [10, 10, 10]
    assert len({tuple(r.prompt[12:]) for r in requests}) == 30
    assert {(r.input_len, r.output_len) for r in requests} == {(21, 7)}
    in_order = [tuple(r.prompt[:12]) for r in requests]
    assert in_order != sorted(in_order, key=in_order.index)  # shuffled


def test_sharegpt_lengths_are_log_normal_within_limits() -> None:
    requests = make(ShareGptDataset(), 6000)
    inputs = np.array([r.input_len for r in requests])
    outputs = np.array([r.output_len for r in requests])
    assert inputs.min() >= 4
    assert inputs.max() <= 1024
    assert outputs.min() >= 4
    assert (inputs + outputs).max() <= 2048
    # The limits cut little in the middle: the medians are those of the distributions.
    for lengths, mean, sigma in (
        (inputs, datasets.SHAREGPT_INPUT_MEAN, datasets.SHAREGPT_INPUT_SIGMA),
        (outputs, datasets.SHAREGPT_OUTPUT_MEAN, datasets.SHAREGPT_OUTPUT_SIGMA),
    ):
        assert np.median(lengths) == pytest.approx(mean * math.exp(-(sigma**2) / 2), rel=0.06)
        quartiles = np.log(np.percentile(lengths, [25, 75]))
        # Of a normal distribution the quartiles are 1.349 deviations apart.
        assert np.diff(quartiles)[0] / 1.349 == pytest.approx(sigma, rel=0.08)


def test_text_prompts_are_words() -> None:
    vocabulary = Vocabulary.of_words()
    (request,), _ = make_requests(RandomDataset(input_len=9, output_len=1), 1, vocabulary, 0)
    assert isinstance(request.prompt, str)
    words = request.prompt.split(" ")
    assert len(words) == 9
    assert set(words) <= set(WORDS)


def test_a_vocabulary_has_each_id_of_the_words_once() -> None:
    vocabulary = Vocabulary.of_tokenizer(lambda text: [len(w) for w in text.split()])
    assert list(vocabulary.items) == sorted({len(w) for w in WORDS})
    assert len(set(WORDS)) == len(WORDS)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: RandomDataset(range_ratio=1.0),
        lambda: RandomDataset(input_len=0),
        lambda: RandomDataset(prefix_len=-1),
        lambda: PrefixRepetitionDataset(num_prefixes=0),
        lambda: PrefixRepetitionDataset(output_len=0),
    ],
)
def test_impossible_lengths_are_refused(bad: object) -> None:
    assert callable(bad)
    with pytest.raises(OptionError):
        bad()
