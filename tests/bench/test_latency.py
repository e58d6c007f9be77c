"""`llmir bench latency` on a tiny artifact: costs, rows, the JSON document, options."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import llmir
from llmir.artifact import Manifest
from llmir.bench.costs import Span, StepCosts
from llmir.bench.report import Row
from llmir.bench.worker import run_job
from llmir.cli import main
from llmir.errors import ArtifactVersionError


@pytest.fixture(scope="module")
def tiny(short_steps: llmir.Artifact) -> llmir.Artifact:
    return short_steps


def costs_of(manifest: Manifest) -> StepCosts:
    return StepCosts.of(manifest, manifest.modules[0])


def test_costs_of_an_artifact_by_hand(tiny: llmir.Artifact) -> None:
    """Llama: hidden 64, FFN 96, 3 layers, 4 heads and 2 KV heads of 16, untied, float32."""
    vocab = tiny.manifest.model.vocab_size
    per_layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96
    norms = 3 * 2 * 64 + 64
    costs = costs_of(tiny.manifest)
    assert costs.matrix_elements == 3 * per_layer
    assert costs.head_elements == vocab * 64
    # Packed matrices are whole tiles of 16 rows; 263 tokens are 17.
    assert vocab == 263
    assert costs.weight_bytes == 4 * (3 * per_layer + 272 * 64 + norms)
    rope_table = 4 * 256 * 16
    assert costs.stored_weight_bytes == costs.weight_bytes + 4 * 272 * 64 + rope_table
    # K and V of a token in one layer: 2 × 2 heads × 16 × 4 bytes.
    assert costs.step_bytes([Span(7, 8)]) == costs.weight_bytes + 3 * (8 + 1) * 256
    attention = 3 * 8 * (4 * 4 * 16)
    dense = 2 * (3 * per_layer + vocab * 64)
    assert costs.step_flops([Span(7, 8)], 1) == dense + attention


def test_a_tied_embedding_is_read_as_the_head(tiny: llmir.Artifact) -> None:
    manifest = tiny.manifest
    tied = dataclasses.replace(
        manifest,
        model=dataclasses.replace(manifest.model, tie_word_embeddings=True),
        tensors=tuple(t for t in manifest.tensors if t.name != "lm_head.weight"),
        parameters={
            name: tuple(p for p in parameters if p.sources != ("lm_head.weight",))
            for name, parameters in manifest.parameters.items()
        },
    )
    costs = costs_of(tied)
    assert costs.weight_bytes == costs_of(manifest).weight_bytes
    assert costs.head_elements == costs_of(manifest).head_elements
    assert costs.matrix_elements == costs_of(manifest).matrix_elements


def test_each_module_reads_the_bytes_of_its_own_weights_file(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    """Q8_0: packed, two bytes of scale in 34; portable, four in 36.  Vectors are float32."""
    made = llmir.compile(tiny_checkpoint("llama-tied"), ["cpu", "vulkan"], weights="q8_0")
    elements = sum(math.prod(t.shape) for t in made.manifest.tensors if len(t.shape) == 2)
    padding = (272 - 263) * 64  # of packed tiles of 16 rows
    vectors = 4 * sum(math.prod(t.shape) for t in made.manifest.tensors if len(t.shape) == 1)
    packed, portable = (StepCosts.of(made.manifest, m) for m in made.manifest.modules)
    assert packed.weight_bytes == (elements + padding) // 32 * 34 + vectors
    assert portable.weight_bytes == elements // 32 * 36 + vectors
    assert packed.matrix_elements == portable.matrix_elements
    # Nothing is stored that the manifest does not say.
    for module, costs in zip(made.manifest.modules, (packed, portable), strict=True):
        header = made.manifest.files[module.weights].num_bytes - costs.stored_weight_bytes
        assert 0 < header < 100_000


def test_an_artifact_that_does_not_say_the_sizes(tiny: llmir.Artifact) -> None:
    older = dataclasses.replace(tiny.manifest, parameters={})
    with pytest.raises(ArtifactVersionError, match=r"weights.packed.irpa.*compile the model again"):
        costs_of(older)


@pytest.fixture(scope="module")
def measured(
    tiny: llmir.Artifact, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any]]:
    """What is printed, and the JSON document."""
    file = tmp_path_factory.mktemp("bench") / "out.json"
    options = "--prompt-lens 48 --depths 40 --batches 3 --repeats 2 --threads 2"
    argv = ["bench", "latency", str(tiny.path), *options.split(), "--json", str(file)]
    with redirect_stdout(StringIO()) as out:
        assert main(argv) == 0
    return out.getvalue(), json.loads(file.read_text())


@pytest.fixture(scope="module")
def document(measured: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return measured[1]


def test_the_document_says_where_when_and_how(document: dict[str, Any]) -> None:
    assert set(document) == {
        "hardware",
        "versions",
        "command",
        "date",
        "artifact",
        "limits",
        "rows",
    }
    assert document["hardware"]["cores"] >= 1
    assert document["hardware"]["memory_bytes"] > 1 << 28
    assert document["versions"]["llmir"] == llmir.__version__
    assert document["versions"]["iree-base-runtime"]
    assert document["command"].startswith("llmir bench latency ")
    assert document["command"].endswith(
        "--prompt-lens 48 --depths 40 --batches 3 --repeats 2 --threads 2"
    )
    assert document["limits"]["num_threads"] == 2


def test_rows_have_every_field_and_agree_with_themselves(
    document: dict[str, Any], tiny: llmir.Artifact
) -> None:
    prefill, decode = document["rows"]
    costs = costs_of(tiny.manifest)
    for row in (prefill, decode):
        assert set(row) == set(Row.__dataclass_fields__)
        assert row["tokens_per_s_min"] <= row["tokens_per_s"] <= row["tokens_per_s_max"]
        assert row["tokens_per_s_min"] == min(row["repeats_tokens_per_s"])
        assert 0 < row["step_ms_min"] <= row["step_ms_p50"] <= row["step_ms_p90"]
        assert row["step_ms_p90"] <= row["step_ms_p99"] <= max(row["steps_ms"])
        assert row["num_steps"] == len(row["steps_ms"])
        assert row["load_s"] > 0
        assert 0 <= row["others_cpu_share"] <= 1
        assert row["first_step_s"] > 0
        assert row["peak_memory_bytes"] > row["weight_bytes"] == costs.stored_weight_bytes
        assert 0 < row["kv_used_bytes"] <= row["kv_pool_bytes"]
        share = row["bytes_per_token"] * row["tokens_per_s"]
        share /= document["limits"]["read_bytes_per_s"]
        assert math.isclose(row["bandwidth_share"], share)
        share = row["flops_per_token"] * row["tokens_per_s"]
        share /= document["limits"]["f32_flops_per_s"]
        assert math.isclose(row["arithmetic_share"], share)
    assert (prefill["phase"], prefill["prompt_tokens"], prefill["num_steps"]) == ("prefill", 48, 4)
    assert prefill["first_token_ms_min"] <= prefill["first_token_ms"]
    # The prompt goes in two chunks, and only its last token wants logits.
    spans = [[Span(0, 32)], [Span(32, 48)]]
    assert prefill["bytes_per_token"] == sum(costs.step_bytes(s) for s in spans) / 48
    flops = costs.step_flops(spans[0], 0) + costs.step_flops(spans[1], 1)
    assert math.isclose(prefill["flops_per_token"], flops / 48)
    assert (decode["phase"], decode["batch"], decode["depth"]) == ("decode", 3, 40)
    assert decode["num_steps"] == 40
    assert decode["first_token_ms"] is None
    assert decode["bytes_per_token"] == costs.step_bytes([Span(40, 41)] * 3) / 3
    # Three sequences of 41 tokens: 3 × 3 pages and page 0, of 16 × 256 bytes, in 3 layers.
    assert decode["kv_used_bytes"] == 10 * 16 * 256 * 3


def test_the_table_is_aligned_and_names_the_limits(measured: tuple[str, Any]) -> None:
    text, _ = measured
    assert "2 threads: reads" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines] == [
        "phase",
        "------:",
        "prefill",
        "decode",
    ]


def test_json_alone_replaces_the_table(
    tiny: llmir.Artifact,
    document: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_limits(job: dict[str, Any]) -> dict[str, Any]:
        return document["limits"] if job["job"] == "limits" else run_job(job)

    monkeypatch.setattr("llmir.bench.latency.run_job", without_limits)
    options = ["--prompt-lens", "4", "--batches", "", "--repeats", "1", "--json"]
    assert main(["bench", "latency", str(tiny.path), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["prompt_tokens"] for row in found["rows"]] == [4]
    assert "--json" not in found["command"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt-lens", "300"], "prefill 300 needs 300 tokens in a sequence"),
        (["--batches", "5"], "decode 5 at depth 0 needs 5 sequences in a step"),
        (["--depths", "100", "--kv-cache-memory", "20K"], "kv-cache-memory is 20480"),
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--device", "vulkan"], "has no module for device 'vulkan'"),
        (["--prompt-lens", "1,x"], "is not a list of whole numbers"),
        (["--batches", "0"], "0 is less than 1"),
        (["--prompt-lens", "", "--depths", ""], "nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    tiny: llmir.Artifact,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("llmir.bench.latency.run_job", lambda job: pytest.fail("measured"))
    defaults = ["--prompt-lens", "8", "--depths", "0", "--batches", "1"]
    code = main(["bench", "latency", str(tiny.path), *defaults, *options])
    assert code in (2, 5)
    assert message in capsys.readouterr().err
