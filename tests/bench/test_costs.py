"""The formulas against numbers worked out by hand."""

from __future__ import annotations

import pytest

from llmir.bench.costs import Span, StepCosts


def costs(windows: tuple[int | None, ...] = (None,), layers: tuple[int, ...] = (0, 0)) -> StepCosts:
    return StepCosts(
        weight_bytes=1000,
        stored_weight_bytes=1200,
        kv_token_bytes=10,
        page_size=4,
        matrix_elements=50,
        head_elements=7,
        attention_flops=3,
        group_windows=windows,
        group_of_layer=layers,
    )


def test_bytes_of_a_decode() -> None:
    # Two layers: 6 positions read and 1 written, and 3 read and 1 written, 10 bytes each.
    spans = [Span(5, 6), Span(2, 3)]
    assert costs().step_bytes(spans) == 1000 + 2 * (6 + 1 + 3 + 1) * 10


def test_bytes_of_a_chunk_under_a_window() -> None:
    # Tokens 10 … 13 with a window of 4 see positions 7 … 13: seven read, four written.
    one_windowed = costs(windows=(4,), layers=(0,))
    assert one_windowed.step_bytes([Span(10, 14)]) == 1000 + (7 + 4) * 10
    # Near the start the window is not full: all four positions.
    assert one_windowed.step_bytes([Span(0, 4)]) == 1000 + (4 + 4) * 10


def test_flops_of_a_step() -> None:
    # Positions 0, 1, 2 see 1 + 2 + 3 in each of two layers.
    assert costs().step_flops([Span(0, 3)], 1) == 2 * 50 * 3 + 2 * 7 + 3 * 2 * 6
    assert costs().step_flops([Span(0, 3)], 0) == 2 * 50 * 3 + 3 * 2 * 6


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("window", [None, 1, 3, 8])
def test_attention_flops_are_the_sum_over_positions(
    start: int, length: int, window: int | None
) -> None:
    seen = sum(min(p + 1, window or p + 1) for p in range(start, start + length))
    found = costs(windows=(window,), layers=(0,)).step_flops([Span(start, start + length)], 0)
    assert found == 2 * 50 * length + 3 * seen


def test_kv_bytes_count_whole_pages_and_page_0() -> None:
    # 5 tokens are 2 pages of 4; three sequences and page 0: 7 pages, in two layers.
    assert costs().kv_bytes(3, 5) == 7 * 4 * 10 * 2
    assert costs(windows=(None, 4), layers=(0, 1, 1)).pool_bytes([5, 2]) == (5 + 2 + 2) * 40
