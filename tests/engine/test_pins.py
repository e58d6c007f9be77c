"""Pinned prefixes: computed once, there for whoever comes, and never too many of them."""

from __future__ import annotations

import pytest

from llmir.engine import SamplingParams
from llmir.errors import RequestError

from .fake_runner import reference_greedy, small_limits
from .helpers import assert_nothing_held, assert_pages_add_up, make_llm
from .test_llm_engine import computed_tokens

PREFIX = [(5 * n) % 60 for n in range(23)]  # five pages of four, and three tokens
ONE = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
LIMITS = small_limits(num_pages=(30,), max_model_len=60)  # 29 pages, of which a request takes 15


def crowd(llm: object, count: int = 12) -> None:
    """Requests that want every page."""
    llm.generate([[n, *range(50)] for n in range(count)], ONE)


@pytest.mark.parametrize("windows", [(None,), (None, 6), (7,), (1,)])
def test_a_pinned_prefix_is_computed_once_and_stays(windows):
    limits = small_limits(num_pages=(30,) * len(windows), group_windows=windows, max_model_len=60)
    llm = make_llm(limits)
    pinned = llm.pin_prefix(PREFIX)
    assert pinned.num_tokens == 20
    assert computed_tokens(llm.engine) == [20]
    crowd(llm)
    before = len(llm.engine.runner.batches)
    (output,) = llm.generate([*PREFIX, 61, 62], ONE)
    assert computed_tokens(llm.engine)[before:] == [5]
    assert output.outputs[0].token_ids == reference_greedy([*PREFIX, 61, 62], 1, limits)
    assert_pages_add_up(llm.engine)

    llm.unpin(pinned)
    crowd(llm)
    before = len(llm.engine.runner.batches)
    llm.generate([*PREFIX, 61, 62], ONE)
    assert sum(computed_tokens(llm.engine)[before:]) == 25 or windows == (1,)
    assert_nothing_held(llm.engine)


def test_pins_are_counted_once_where_they_overlap():
    llm = make_llm(LIMITS)
    stats = llm.engine.scheduler.stats
    first = llm.pin_prefix(PREFIX)
    assert stats().num_pinned_pages == 5
    assert stats().kv_cache_usage == pytest.approx(5 / 29)
    second = llm.pin_prefix([*PREFIX[:12], *[63] * 8])
    again = llm.pin_prefix(PREFIX)
    assert stats().num_pinned_pages == 7
    llm.unpin(first)
    assert stats().num_pinned_pages == 7
    llm.unpin(again)
    assert stats().num_pinned_pages == 5
    llm.unpin(second)
    assert stats().num_pinned_pages == 0
    assert_nothing_held(llm.engine)


def test_pins_leave_room_for_the_longest_request():
    llm = make_llm(LIMITS)  # 14 pages can be pinned
    pinned = llm.pin_prefix([1] * 40)
    with pytest.raises(
        RequestError,
        match=r"to pin 20 tokens takes 5 more pages of 4; 10 are pinned, and beside the longest "
        r"request there may be \(60 tokens\) no more than 14 can be",
    ):
        llm.pin_prefix(PREFIX)
    assert computed_tokens(llm.engine) == [32, 8]  # what is refused is not computed
    llm.pin_prefix([*[1] * 40, *PREFIX[:16]])  # shares ten pages with the first
    (output,) = llm.generate([[3] * 59], ONE)
    assert output.finished
    llm.unpin(pinned)
    with pytest.raises(RequestError, match="to pin 20 tokens takes 5 more pages"):
        llm.pin_prefix(PREFIX)


def test_a_cache_smaller_than_the_longest_request_holds_no_pins():
    llm = make_llm(small_limits(num_pages=(8,)))
    with pytest.raises(RequestError, match=r"\(28 tokens\) no more than 0 can be"):
        llm.pin_prefix(PREFIX)


def test_what_cannot_be_pinned_is_refused():
    llm = make_llm(LIMITS)
    with pytest.raises(RequestError, match="the prompt has 3 tokens: fewer than one page of 4"):
        llm.pin_prefix([1, 2, 3])
    with pytest.raises(RequestError, match="the prompt has token id 99999"):
        llm.pin_prefix([99999] * 20)
    with pytest.raises(RequestError, match="enable_prefix_caching is off"):
        make_llm(LIMITS, enable_prefix_caching=False).pin_prefix(PREFIX)


def test_unpinning_twice_or_elsewhere_is_refused():
    llm = make_llm(LIMITS)
    pinned = llm.pin_prefix(PREFIX)
    with pytest.raises(RequestError, match="20 tokens is not pinned"):
        make_llm(LIMITS).unpin(pinned)
    llm.unpin(pinned)
    with pytest.raises(RequestError, match="20 tokens is not pinned"):
        llm.unpin(pinned)


def test_a_text_is_pinned_as_it_would_be_answered():
    llm = make_llm()
    text = "the capital of France is Paris and the dog ran home"
    pinned = llm.pin_prefix(text)
    llm.generate(text, ONE)
    tokens = len(llm.get_tokenizer().encode(text))
    assert pinned.num_tokens == tokens // 4 * 4
    cached = (tokens - 1) // 4 * 4
    assert computed_tokens(llm.engine)[-1] == tokens - cached
