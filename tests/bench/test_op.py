"""`llmir bench op`: the ops that an artifact lists, their costs, rows, measuring, the command."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmir
from llmir.artifact import CallOperand, StepCall
from llmir.bench import op as op_report
from llmir.bench import op_measure
from llmir.bench.cases import Case, Sequences
from llmir.bench.costs import Span, StepCosts
from llmir.bench.limits import MachineLimits
from llmir.bench.measure import (
    DECODE_STEPS_PER_REPEAT,
    Measured,
    RunOptions,
    measure_case,
)
from llmir.bench.op import Profile, check_calls, make_profile
from llmir.bench.op_costs import CallCosts, call_costs
from llmir.bench.op_measure import CHAIN, MeasuredOps
from llmir.cli import main
from llmir.compiler.op_modules import compile_calls
from llmir.errors import ArtifactVersionError, OptionError
from llmir.runtime.session import Session, SessionOptions

Array = np.ndarray[Any, Any]

LIMITS = MachineLimits(
    num_threads=2,
    read_bytes_per_s=1e10,
    read_bytes_per_s_median=1e10,
    read_bytes_per_s_max=1e10,
    read_round_bytes=1,
    num_read_rounds=3,
    f32_flops_per_s=1e11,
    f32_flops_per_s_median=1e11,
    f32_flops_per_s_max=1e11,
    matmul_size=384,
    num_matmul_rounds=3,
)


@pytest.fixture(scope="module")
def tiny(short_steps: llmir.Artifact) -> llmir.Artifact:
    return short_steps


def calls_of(artifact: llmir.Artifact) -> dict[str, StepCall]:
    return {call.label: call for call in artifact.manifest.modules[0].calls}


def test_an_artifact_lists_the_ops_of_a_step(tiny: llmir.Artifact) -> None:
    calls = calls_of(tiny)
    assert {label: (call.op, call.count) for label, call in calls.items()} == {
        "embedding": ("packed_embedding", 1),
        "qkv": ("packed_matmul", 3),
        "rope_append": ("rope_append", 3),
        "attention": ("paged_attention", 3),
        "o": ("packed_matmul", 3),
        "gate_up": ("packed_matmul", 3),
        "down": ("packed_matmul", 3),
        "logit rows": ("embedding", 1),
        "lm_head": ("packed_argmax", 1),
    }
    assert [o.dims for o in calls["o"].operands] == [("T", "64"), ("16384",), ("T", "64")]
    assert calls["lm_head"].operands[0].dims == ("L", "64")
    assert calls["gate_up"].rotated == ("weight", "norm")
    assert calls["rope_append"].rotated == ("kv",)  # the RoPE table is the same for all
    assert calls["down"].sources[1] == ("", "model.layers.1.mlp.down_proj.packed", "")
    assert [names[1] for names in calls["attention"].sources] == ["kv_0", "kv_1", "kv_2"]


def test_rows_of_heads_are_a_multiple_of_the_tokens(tiny_checkpoint: Callable[..., Path]) -> None:
    """Portable lowerings, where Qwen3's norms of the heads are ops of their own."""
    made = llmir.compile(tiny_checkpoint("qwen3"), "vulkan")
    calls = made.manifest.modules[0].calls
    check_calls(made.manifest.modules[0])
    spec = made.manifest.model
    rows = {o.dims[0] for c in calls if c.op == "rms_norm" for o in c.operands if o.name == "x"}
    assert rows == {"T", "L", f"T*{spec.num_heads}", f"T*{spec.num_kv_heads}"}
    assert {"q", "k", "v", "o", "gate", "up", "down", "lm_head"} <= {c.label for c in calls}


def test_costs_by_hand(tiny: llmir.Artifact) -> None:
    """Hidden 64, FFN 96, 4 heads and 2 KV heads of 16, all float32; 263 tokens are 17 tiles."""
    calls = calls_of(tiny)
    spans = [Span(10, 13), Span(0, 2)]
    sizes = {"T": 5, "L": 2}

    def costs(label: str) -> CallCosts:
        return call_costs(calls[label], sizes, spans)

    assert costs("qkv") == CallCosts(
        memory_bytes=4 * (128 * 64 + 64),
        activation_bytes=4 * 5 * (64 + 128),
        operations=2 * 5 * 128 * 64,
    )
    assert costs("gate_up").operations == 2 * 5 * 2 * 96 * 64
    assert costs("down").activation_bytes == 4 * 5 * (96 + 64 + 64)  # x, residual, y
    assert costs("embedding").memory_bytes == 4 * 5 * 64 * 272 // 263
    assert costs("lm_head") == CallCosts(
        memory_bytes=4 * (272 * 64 + 64),
        activation_bytes=4 * 2 * (64 + 1),
        operations=2 * 2 * 263 * 64,
    )
    assert costs("rope_append").memory_bytes == 5 * 4 * 16 + 5 * (2 * 2 * 16 * 4)
    # 13 and 2 positions are read; the tokens see 11 + 12 + 13 and 1 + 2.
    assert costs("attention").memory_bytes == (13 + 2) * (2 * 2 * 16 * 4)
    assert costs("attention").operations == 4 * 4 * 16 * (36 + 3)
    windowed = dataclasses.replace(
        calls["attention"], attrs={**calls["attention"].attrs, "window": 4}
    )
    found = call_costs(windowed, sizes, spans)
    assert found.memory_bytes == (6 + 2) * (2 * 2 * 16 * 4)
    assert found.operations == 4 * 4 * 16 * (3 * 4 + 3)


@pytest.mark.parametrize("case", [Case.decode(3, 20), Case.prefill(32)])
def test_the_ops_read_what_the_step_does(tiny: llmir.Artifact, case: Case) -> None:
    """But for looked-up rows, which StepCosts leaves out."""
    module = tiny.manifest.modules[0]
    costs = StepCosts.of(tiny.manifest, module)
    (spans,) = case.spans(32)
    tokens = sum(s.length for s in spans)
    each = [(c.count, call_costs(c, {"T": tokens, "L": case.batch}, spans)) for c in module.calls]
    rope_rows = 3 * tokens * 16 * 4
    embedding_rows = tokens * 64 * 4 * 272 // 263
    found = sum(count * of.memory_bytes for count, of in each)
    assert found == costs.step_bytes(spans) + rope_rows + embedding_rows
    assert sum(n * of.operations for n, of in each) == costs.step_flops(spans, case.batch)


def matmul(count: int) -> StepCall:
    return StepCall(
        op="packed_matmul",
        label="down",
        provider="cpu_c",
        variant="",
        attrs={"format": "q8_0", "activations": "int8", "rows": 64, "gated": "", "eps": 0.0},
        operands=(
            CallOperand(name="x", kind="activations", dtype="f32", dims=("T", "96")),
            CallOperand(name="weight", kind="parameter", dtype="i8", dims=("6528",)),
        ),
        sources=tuple(("", f"layers.{i}.down_proj.packed") for i in range(count)),
    )


def step(*seconds: float) -> Measured:
    return Measured(
        load_s=1.0,
        first_step_s=1.0,
        step_s=[list(seconds)],
        first_token_s=[],
        others_cpu_share=0.25,
        peak_memory_bytes=None,
        kv_pool_bytes=0,
        kv_used_bytes=0,
    )


@pytest.fixture
def profile() -> Profile:
    """Calls of 1, 2 and 4 µs, links of 1 µs taken off; 10 in a step of 40 µs."""
    ops = MeasuredOps(
        call_s=[[CHAIN * 3e-6, CHAIN * 2e-6, CHAIN * 5e-6]],
        links_s=[[CHAIN * 1e-6, CHAIN * 9e-6, CHAIN * 1e-6]],
        others_cpu_share=0.5,
    )
    return make_profile(Case.decode(2, 5), [matmul(10)], ops, step(30e-6, 40e-6, 80e-6), 32, LIMITS)


def test_a_row_and_the_lines_below(profile: Profile) -> None:
    (row,) = profile.rows
    # Percentiles of 1, 2 and 4, between two of them in proportion.
    assert (row.call_us, row.call_us_p10, row.call_us_p90) == pytest.approx((2, 1.2, 3.6))
    assert (row.count, row.step_ms, row.step_share) == pytest.approx((10, 0.020, 0.5))
    assert row.memory_bytes == 6528
    assert row.activation_bytes == 4 * 2 * (96 + 64)
    assert row.operations == 2 * 2 * 64 * 96
    assert row.bandwidth_share == pytest.approx(6528 / 2e-6 / 1e10)
    assert row.arithmetic_share == pytest.approx(2 * 2 * 64 * 96 / 2e-6 / 1e11)
    found = (profile.ops_ms, profile.step_ms, profile.step_ms_p10, profile.step_ms_p90)
    assert found == pytest.approx((0.020, 0.040, 0.032, 0.072))
    assert profile.difference_ms == pytest.approx(0.020)


def test_noise_makes_no_call_shorter_than_nothing() -> None:
    ops = MeasuredOps(call_s=[[1e-6]], links_s=[[2e-6]], others_cpu_share=None)
    made = make_profile(Case.decode(1, 0), [matmul(1)], ops, step(1e-3), 32, LIMITS)
    (row,) = made.rows
    assert (row.call_us, row.bandwidth_share, row.arithmetic_share) == (0, None, None)


def test_the_table(profile: Profile) -> None:
    text = op_report.text(profile)
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert text.startswith("decode 2 at depth 5 (others' CPU: ops 50 %, step 25 %)\n\n|")
    assert cells[2][:8] == [
        *("down", "packed_matmul", "cpu_c", "10", "2.0", "1.2–3.6", "0.020", "50 %"),
    ]
    assert [line[0] for line in cells[3:]] == ["sum of ops", "step, measured", "difference"]
    assert [line[6] for line in cells[3:]] == ["0.020", "0.040", "0.020"]


def test_ops_are_measured_alone(
    tiny: llmir.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matmul, both ops on pages, and one on rows of logits: as one module, compiled and run."""
    monkeypatch.setattr(op_measure, "SECONDS", 0.0)
    monkeypatch.setattr(op_measure, "COLD_BYTES", 1 << 20)
    labels = ("qkv", "rope_append", "attention", "logit rows")
    calls = tuple(calls_of(tiny)[label] for label in labels)
    module = dataclasses.replace(tiny.manifest.modules[0], calls=calls)
    compile_calls(calls, CHAIN, module.flags, tmp_path / "ops.vmfb")
    case = Case.decode(2, 20)
    options = RunOptions(device="local-task")
    found = op_measure.measure_calls(tiny, module, tmp_path / "ops.vmfb", case, options)
    assert [len(times) for times in (*found.call_s, *found.links_s)] == [5] * 8
    assert all(0 < s < 1 for times in (*found.call_s, *found.links_s) for s in times)


def test_zeros_take_the_place_of_a_computed_context(tiny: llmir.Artifact) -> None:
    batch = op_measure.step_batch(tiny, Case.decode(2, 20))

    def logits(*, fill: bool, zero: bool) -> Array:
        session = Session(tiny, SessionOptions(device="local-task"))
        if fill:
            Sequences(session, 2, 20).fill(20)
        if zero:
            session.zero_kv(1 + 2 * 2)
        return session.step(batch)

    zeros = logits(fill=True, zero=True)
    np.testing.assert_array_equal(zeros, logits(fill=False, zero=True))
    assert np.isfinite(zeros).all()
    assert (zeros != logits(fill=True, zero=False)).any()
    options = RunOptions(device="local-task", zero_kv=True)
    measured = measure_case(tiny.path, Case.decode(2, 20), options, 1)
    assert len(measured.step_s[0]) == DECODE_STEPS_PER_REPEAT


def test_the_batch_of_a_case(tiny: llmir.Artifact) -> None:
    batch = op_measure.step_batch(tiny, Case.decode(3, 20))
    assert (batch.positions.tolist(), batch.context_len.tolist()) == ([20] * 3, [21] * 3)
    assert len(set(batch.slots[0].tolist())) == 3
    assert len(op_measure.step_batch(tiny, Case.prefill(32)).token_ids) == 32
    with pytest.raises(OptionError, match=r"33 is 2 steps of up to 32.*length of at most 32"):
        op_measure.step_batch(tiny, Case.prefill(33))


def test_ops_that_cannot_be_measured(tiny: llmir.Artifact) -> None:
    module = tiny.manifest.modules[0]
    with pytest.raises(ArtifactVersionError, match="does not list the ops.*compile the model"):
        check_calls(dataclasses.replace(module, calls=()))
    call = matmul(1)
    unknown = dataclasses.replace(call.operands[0], dims=("?", "96"))
    call = dataclasses.replace(call, operands=(unknown, call.operands[1]))
    with pytest.raises(OptionError, match=r"llm.packed_matmul \(down\).*'x' is \?×96"):
        check_calls(dataclasses.replace(module, calls=(call,)))


@pytest.fixture
def without_measuring(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Jobs are listed and answered at once: every call takes 2 µs, a step 1 ms."""
    jobs: list[dict[str, Any]] = []

    def answer(job: dict[str, Any]) -> dict[str, Any]:
        jobs.append(job)
        if job["job"] == "limits":
            return dataclasses.asdict(LIMITS)
        if job["job"] == "case":
            return dataclasses.asdict(step(1e-3))
        times = {"call_s": [[CHAIN * 3e-6]] * 9, "links_s": [[CHAIN * 1e-6]] * 9}
        return {**times, "others_cpu_share": 0.0}

    monkeypatch.setattr("llmir.bench.op.run_job", answer)
    monkeypatch.setattr("llmir.bench.latency.run_job", answer)
    monkeypatch.setattr("llmir.compiler.op_modules.compile_calls", lambda *args: None)
    return jobs


def test_the_command(
    tiny: llmir.Artifact,
    without_measuring: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "out.json"
    options = "--prompt-lens 16 --depths 0,7 --batches 2 --threads 2"
    assert main(["bench", "op", str(tiny.path), *options.split(), "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert [job["job"] for job in without_measuring] == [
        *("limits", "ops", "case", "ops", "case", "ops", "case", "limits")
    ]
    named = [(p["phase"], p["batch"], p["prompt_tokens"], p["depth"]) for p in document["rows"]]
    assert named == [("decode", 2, 0, 0), ("decode", 2, 0, 7), ("prefill", 1, 16, 0)]
    for found in document["rows"]:
        assert found["ops_ms"] == pytest.approx(21 * 2e-3)  # 3 layers of six ops, and three more
        assert found["difference_ms"] == pytest.approx(1 - 21 * 2e-3)
    assert document["command"].startswith("llmir bench op ")
    out = capsys.readouterr().out
    for part in ("computes f32", "decode 2 at depth 7", "prefill 16", "lm_head", "difference"):
        assert part in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('--prompt-lens 33 --batches ""', "prefill 33 is 2 steps of up to 32 tokens"),
        ('--prompt-lens "" --depths 256 --batches 1', "needs 257 tokens in a sequence"),
        ('--prompt-lens "" --depths 0 --batches 5', "needs 5 sequences in a step"),
        ('--prompt-lens "" --batches ""', "nothing to measure"),
        ("--depths 0 --threads 0", "threads must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_profiled(
    tiny: llmir.Artifact,
    without_measuring: list[dict[str, Any]],
    options: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word.strip('"') for word in options.split()]
    assert main(["bench", "op", str(tiny.path), *words]) != 0
    assert message in capsys.readouterr().err
    assert without_measuring == []
