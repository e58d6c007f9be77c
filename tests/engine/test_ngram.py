"""n-gram drafts: what followed the last tokens before, and no more than was worth it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmir.engine.ngram import NgramConfig, NgramProposer
from llmir.errors import OptionError


def expected(tokens, config, limit):
    """By definition: the latest earlier place of the longest end, read on from there."""
    for size in range(config.prompt_lookup_max, config.prompt_lookup_min - 1, -1):
        if size > len(tokens):
            continue
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                whole = list(tokens)
                draft = []
                for i in range(min(limit, config.num_speculative_tokens)):
                    draft.append(whole[end + i])
                    whole.append(draft[-1])
                return draft
    return []


@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    first=st.integers(1, 40),
    limit=st.integers(0, 6),
    longest=st.integers(1, 4),
    shortest=st.integers(1, 4),
)
def test_drafts_are_what_followed_last_time(tokens, first, limit, longest, shortest):
    config = NgramConfig(
        num_speculative_tokens=5,
        prompt_lookup_max=max(longest, shortest),
        prompt_lookup_min=shortest,
    )
    proposer = NgramProposer(config)
    # However the sequence grew, one token at a time or several, the draft is the same.
    proposer.extend(tokens[:first])
    proposer.propose(1)
    proposer.extend(tokens[first:])
    assert proposer.propose(limit) == expected(tokens, config, limit)


def test_a_loop_is_drafted_round_and_round():
    proposer = NgramProposer(NgramConfig(num_speculative_tokens=7))
    proposer.extend([9, 1, 2, 3, 1, 2, 3])
    assert proposer.propose(7) == [1, 2, 3, 1, 2, 3, 1]


def test_a_refused_draft_makes_the_next_one_short():
    proposer = NgramProposer(NgramConfig(num_speculative_tokens=4))
    proposer.extend([1, 2, 3, 4, 5, 6, 1, 2])
    assert len(proposer.propose(9)) == 4
    proposer.learn(4, 0)
    assert proposer.propose(9) == [3]
    proposer.learn(1, 1)
    assert len(proposer.propose(9)) == 4
    proposer.learn(4, 2)
    assert len(proposer.propose(9)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_speculative_tokens": 0}, "num_speculative_tokens must be a positive whole number"),
        ({"prompt_lookup_max": 2.5}, "prompt_lookup_max must be a positive whole number; got 2.5"),
        ({"prompt_lookup_min": 9}, "prompt_lookup_min is 9, more than prompt_lookup_max, 4"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(OptionError, match=message):
        NgramConfig(**options)
