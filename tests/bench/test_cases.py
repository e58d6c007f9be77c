"""The batches of a case, checked by the engine tests' fake runner against the step's contract."""

from __future__ import annotations

import pytest
from engine.fake_runner import FakeRunner, small_limits

from llmir.artifact import Limits
from llmir.bench.cases import Case, Sequences, chunks_of
from llmir.bench.costs import Span
from llmir.errors import OptionError

LIMITS = Limits(max_model_len=128, max_num_batched_tokens=32, max_num_seqs=8)


def test_chunks_cover_a_prompt() -> None:
    assert list(chunks_of(0, 70, 32)) == [Span(0, 32), Span(32, 64), Span(64, 70)]
    assert Case.prefill(70).spans(32) == [[Span(0, 32)], [Span(32, 64)], [Span(64, 70)]]
    assert Case.decode(3, 10).spans(32) == [[Span(10, 11)] * 3]


def test_decode_is_at_depth_with_pages_of_its_own_and_distinct_tokens() -> None:
    runner = FakeRunner(small_limits(num_pages=(64, 64), group_windows=(None, 8)))
    seqs = Sequences(runner, 3, 41)
    seqs.fill(40)
    assert [batch.context_len.tolist() for batch in runner.batches] == [[32], [40]] * 3
    filled = [tuple(b.token_ids) for b in runner.batches]
    assert len(set(filled)) == len(filled)
    for _ in range(2):
        _, tokens = seqs.step(Span(40, 41))
        batch = runner.batches[-1]
        assert tokens.shape == (3,)
        assert batch.positions.tolist() == [40, 40, 40]
        assert batch.context_len.tolist() == [41, 41, 41]
    # The same slots again: the depth stays.
    assert (runner.batches[-1].slots == runner.batches[-2].slots).all()


def test_release_gives_all_pages_back() -> None:
    runner = FakeRunner(small_limits(num_pages=(11,)))
    seqs = Sequences(runner, 1, 40)
    for _ in range(3):  # ten of ten pages, each time
        for span in chunks_of(0, 40, 32):
            _, tokens = seqs.step(span)
        assert tokens.shape == (1,)
        seqs.release()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case.prefill(129), "prefill 129 needs 129 tokens in a sequence; .* compiled for 128"),
        (Case.decode(1, 128), "decode 1 at depth 128 needs 129 tokens"),
        (Case.decode(9, 0), "decode 9 at depth 0 needs 9 sequences in a step; .* for 8"),
    ],
)
def test_what_the_artifact_was_not_compiled_for_is_refused(case: Case, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        case.check(LIMITS)
    Case.prefill(128).check(LIMITS)
    Case.decode(8, 127).check(LIMITS)
