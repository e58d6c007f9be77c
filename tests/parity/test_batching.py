"""Batching changes nothing: bit-equal logits and the same tokens in whatever company.

The expected answers are of each prompt alone, computed in one step and then token by
token, which the other tests of this directory hold to transformers.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import llmir
from llmir.artifact import Artifact
from llmir.runtime.session import Session, SessionOptions

from .serving import assert_same, params, serve

Make = Callable[..., Path]

# One kind for each thing that could depend on the company: nothing special, two page
# tables of which one has a window, weights in groups, keys and values of 16 and of 8 bits, and
# widths that no vector divides.
KINDS = {
    "llama": ("llama", {}, {}),
    "windows": ("qwen2-window", {}, {"page_size": 8}),
    "int4": ("llama-tied", {}, {"weights": "int4-g32"}),
    "kv-bf16": ("llama-mqa", {}, {"kv_dtype": "bf16"}),
    "kv-int8": ("llama", {}, {"kv_dtype": "int8"}),
    "kv-fp8": ("qwen2-window", {}, {"kv_dtype": "fp8"}),
    "odd": ("qwen3", {"hidden_size": 45, "intermediate_size": 77, "head_dim": 10}, {}),
}


@pytest.fixture(scope="module", params=KINDS)
def tiny(request: pytest.FixtureRequest, tiny_checkpoint: Make) -> Artifact:
    kind, sizes, options = KINDS[request.param]
    return llmir.compile(tiny_checkpoint(kind, **sizes), **options)


def session(artifact: Artifact, num_pages: int | None = None) -> Session:
    """A session whose KV pools have that many pages each, page 0 included."""
    kv = artifact.manifest.kv
    num_bytes = None if num_pages is None else num_pages * kv.page_bytes * len(kv.group_of_layer)
    made = Session(artifact, SessionOptions(kv_cache_bytes=num_bytes))
    assert num_pages is None or set(made.limits.num_pages) == {num_pages}
    return made


def prompts_of(rng: np.random.Generator, vocab_size: int, lengths: Sequence[int]) -> list:
    return [rng.integers(0, vocab_size, n).tolist() for n in lengths]


def assert_any_company(
    artifact: Artifact, seed: int, *, lengths: tuple[int, int], most_prompts: int, new_tokens: int
) -> int:
    """Serve random prompts alone and then under random limits; returns the preemptions."""
    rng = np.random.default_rng(seed)
    roomy = session(artifact)
    num_prompts = int(rng.integers(2, most_prompts + 1))
    vocab_size = roomy.limits.vocab_size
    prompts = prompts_of(rng, vocab_size, rng.integers(*lengths, num_prompts))
    wanted = [params(new_tokens, None if i % 3 else i) for i in range(num_prompts)]
    alone = [
        serve(roomy, [p], [w], enable_prefix_caching=False)[0]
        for p, w in zip(prompts, wanted, strict=True)
    ]

    order = rng.permutation(num_prompts)
    page_size = roomy.limits.page_size
    longest = max(map(len, prompts)) + new_tokens
    scarce = session(artifact, -(-longest // page_size) + 2)
    num_preemptions = 0
    for runner, config in (
        (roomy, {}),
        (roomy, {"max_num_batched_tokens": int(rng.integers(1, 40))}),
        (roomy, {"enable_prefix_caching": False}),
        (roomy, {"max_prefill_chunk": int(rng.integers(1, 40)), "max_num_seqs": 3}),
        (scarce, {"max_prefill_chunk": int(rng.integers(8, 64))}),
    ):
        served = serve(runner, [prompts[i] for i in order], [wanted[i] for i in order], **config)
        for i, answer in zip(order, served, strict=True):
            assert_same(answer, alone[i])
            num_preemptions += answer.num_preemptions
    return num_preemptions


def test_any_company(tiny: Artifact) -> None:
    counts = [
        assert_any_company(tiny, seed, lengths=(1, 120), most_prompts=7, new_tokens=12)
        for seed in range(6)
    ]
    assert sum(counts) > 0, "the small KV cache was meant to force preemptions"


def test_known_beginnings(tiny: Artifact) -> None:
    """Requests that begin alike, at once and one after the other, from pages that others computed."""
    rng = np.random.default_rng(5)
    runner = session(tiny)
    (beginning,) = prompts_of(rng, runner.limits.vocab_size, [70])
    own = prompts_of(rng, runner.limits.vocab_size, [9, 1, 20, 3, 40])
    prompts = [beginning[:n] + rest for n, rest in zip([70, 64, 33, 17, 70], own, strict=True)]
    prompts.append(prompts[0])
    wanted = [params(8)] * len(prompts)
    alone = [serve(runner, [p], [params(8)], enable_prefix_caching=False)[0] for p in prompts]
    for config in ({}, {"max_num_seqs": 1}, {"max_num_seqs": 2, "max_prefill_chunk": 19}):
        for answer, expected in zip(serve(runner, prompts, wanted, **config), alone, strict=True):
            assert_same(answer, expected)


def test_full_steps(tiny: Artifact) -> None:
    """As many sequences and as many tokens as a step holds."""
    runner = session(tiny)
    limits = runner.limits
    lengths = np.random.default_rng(3).integers(1, 25, limits.max_num_seqs)
    assert lengths.sum() > limits.max_num_batched_tokens
    prompts = prompts_of(np.random.default_rng(4), limits.vocab_size, lengths)
    wanted = [params(3)] * len(prompts)
    alone = [serve(runner, [p], [params(3)])[0] for p in prompts]
    for answer, expected in zip(serve(runner, prompts, wanted), alone, strict=True):
        assert_same(answer, expected)


def assert_every_split(artifact: Artifact, token_ids: Sequence[int], new_tokens: int) -> None:
    runner = session(artifact)
    (whole,) = serve(runner, [token_ids], [params(new_tokens)])
    for split in range(1, len(token_ids)):
        (answer,) = serve(runner, [token_ids], [params(new_tokens)], prefill_splits=(split,))
        assert_same(answer, whole)


def test_every_split(tiny: Artifact) -> None:
    rng = np.random.default_rng(1)
    (token_ids,) = prompts_of(rng, tiny.manifest.model.vocab_size, [75])
    assert_every_split(tiny, token_ids, 4)


LOGITS = """
import sys, numpy, llmir
llm = llmir.LLM(sys.argv[1], num_threads=int(sys.argv[2]))
ids = numpy.load(sys.argv[3]).tolist()
numpy.save(sys.argv[4], llm.logits(ids))
"""


def assert_any_threads(artifact: Artifact, scratch: Path, num_tokens: int) -> None:
    """IREE fixes a process's threads with its first device: a process for each number."""
    rng = np.random.default_rng(2)
    token_ids = rng.integers(0, artifact.manifest.model.vocab_size, num_tokens)
    np.save(scratch / "ids.npy", token_ids)
    results = []
    for num_threads in (1, 2, 3):
        out = scratch / f"{num_threads}.npy"
        args = [str(artifact.path), str(num_threads), str(scratch / "ids.npy"), str(out)]
        subprocess.run([sys.executable, "-c", LOGITS, *args], check=True)
        results.append(np.load(out).view(np.int32))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_any_number_of_threads(tiny_artifact: Path, tmp_path: Path) -> None:
    assert_any_threads(llmir.load(tiny_artifact), tmp_path, 200)


@pytest.fixture
def demo(demo_artifact: Path) -> Artifact:
    return llmir.load(demo_artifact)


def test_demo_any_company(demo: Artifact) -> None:
    assert assert_any_company(demo, 0, lengths=(1, 90), most_prompts=5, new_tokens=8) > 0


def test_demo_every_split(demo: Artifact) -> None:
    token_ids = (
        llmir.LLM(demo)
        .get_tokenizer()
        .encode(
            "The capital of France is a city on the river Seine, and its name, as every child "
            "knows, has five letters and begins with a capital P"
        )
    )
    assert 25 < len(token_ids) < 40
    assert_every_split(demo, token_ids, 2)


def test_demo_any_number_of_threads(demo: Artifact, tmp_path: Path) -> None:
    assert_any_threads(demo, tmp_path, 70)
