"""The device's limits, and torch's own numbers for the same shapes, where torch is there.

A program of its own, which run.py starts: a line of JSON for each row, as they come.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

# Rows and columns of an 8B layer's products.
PRODUCTS = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
_MORE_THAN_CACHES = 256 << 20
Add = Callable[..., None]
"""Takes a row's name and its numbers."""


def measure(add: Add) -> dict[str, float]:
    """bandwidth, bytes per second, and matrix, operations of bf16 per second; {} without a GPU."""
    try:
        import torch
    except ImportError:
        add("limits", torch="not on this machine: no limits and no shares of them")
        return {}
    if not torch.cuda.is_available():
        add("limits", torch="has no GPU here: no limits and no shares of them")
        return {}
    copy, read = _bandwidths(torch)
    matrix = _matrix_rate(torch)
    add(
        "limits",
        device=torch.cuda.get_device_name(),
        torch=torch.__version__,
        copy_GBs=copy / 1e9,
        read_GBs=read / 1e9,
        bf16_TFLOPs=matrix / 1e12,
    )
    limits = {"bandwidth": max(copy, read), "matrix": matrix}
    add("limits for shares", **limits)
    for tokens in (1, 32, 2048):
        _products(torch, tokens, limits, add)
    for name, batch, asked, keys in (("decode b32", 32, 1, 1024), ("prefill", 1, 2048, 2048)):
        add(f"torch SDPA {name}, a layer", ms=1e3 * _attention(torch, batch, asked, keys))
    torch.cuda.empty_cache()
    return limits


def _timed(torch: Any, call: Callable[[], Any], repeats: int = 10) -> float:
    """Seconds of a call, after three that are not counted."""
    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def _bandwidths(torch: Any) -> tuple[float, float]:
    """Bytes per second of a copy, read and written, and of a sum, read alone."""
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda").zero_()
    target, words = torch.empty_like(source), source.view(torch.float32)
    copy = 2 * source.numel() / _timed(torch, lambda: target.copy_(source))
    return copy, source.numel() / _timed(torch, lambda: torch.sum(words))


def _matrix_rate(torch: Any) -> float:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return float(2 * 8192**3 / _timed(torch, lambda: a @ b))


def _products(torch: Any, tokens: int, limits: dict[str, float], add: Add) -> None:
    seconds = operations = moved = 0.0
    for rows, columns in PRODUCTS.values():
        copies = max(1, _MORE_THAN_CACHES // (rows * columns * 2))
        weights = [
            torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) for _ in range(copies)
        ]
        x = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)

        def products(x: Any = x, weights: Any = weights) -> None:
            for w in weights:
                torch.nn.functional.linear(x, w)

        seconds += _timed(torch, products) / copies
        operations += 2 * rows * columns * tokens
        moved += rows * columns * 2
    add(
        f"torch cuBLAS bf16, a layer's products, {tokens} tokens",
        **{
            "ms": 1e3 * seconds,
            "TFLOP/s": operations / seconds / 1e12,
            "share of bandwidth": moved / seconds / limits["bandwidth"],
            "share of matrix rate": operations / seconds / limits["matrix"],
        },
    )


def _attention(torch: Any, batch: int, asked: int, keys: int) -> float:
    q = torch.randn(batch, 32, asked, 128, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(batch, 8, keys, 128, device="cuda", dtype=torch.bfloat16) for _ in "kv")
    attend = torch.nn.functional.scaled_dot_product_attention
    return _timed(torch, lambda: attend(q, k, v, is_causal=asked > 1, enable_gqa=True))


def main() -> None:
    def add(name: str, **numbers: Any) -> None:
        print(json.dumps([name, numbers]), flush=True)

    measure(add)


if __name__ == "__main__":
    main()
