"""How near compiled models come to transformers in float32: the demo model, stored in several ways.

    python benchmarks/accuracy.py > benchmarks/results/accuracy_<hardware>_<date>.md

The reference is transformers with the file's weights dequantised to float32 by the gguf
package.  For each way to store weights and KV cache:

    logits      largest difference over 20 prompts × 48 teacher-forced positions
    top-1       share of those positions where the likeliest token is the reference's
    perplexity  on the first 4,096 tokens of the GPL-3 text, in four windows of 1,024

Takes about ten minutes and 3 GB of memory.
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from fetch_demo import fetch_demo  # noqa: E402

import llmir  # noqa: E402
from llmir.bench.report import hardware, heading, versions  # noqa: E402
from tests.parity import demo_accuracy as demo  # noqa: E402
from tests.parity import reference  # noqa: E402

VARIANTS: tuple[dict[str, str], ...] = (
    {"weights": "keep", "activations": "f32", "kv_dtype": "f32"},
    {"weights": "f32"},
    {"weights": "keep"},
    {"weights": "bf16"},
    {"weights": "q8_0"},
    {"weights": "int8"},
    {"weights": "q4_0"},
    {"weights": "int4-g32"},
    {"weights": "keep", "kv_dtype": "f32"},
    {"weights": "keep", "kv_dtype": "f16"},
    {"weights": "keep", "kv_dtype": "int8"},
    {"weights": "keep", "kv_dtype": "fp8"},
)


def main() -> None:
    path, machine = fetch_demo(), heading(hardware())
    model = reference.from_llama_gguf(path)
    windows = demo.windows(path)
    expected = demo.perplexity([demo.reference_scores(model, w) for w in windows])
    given: list[demo.Answer] = []
    rows = []
    for options in VARIANTS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            artifact = llmir.compile(path, output=Path(scratch) / "artifact", **options)
            llm = llmir.LLM(artifact)
            if not given:  # the first variant's answers are what all are compared on
                given = demo.answers(llm, model)
                wrong = [p for a in given for p in a.wrong_choices()]
            named = {"kv_dtype": artifact.manifest.kv.dtype, "activations": "auto", **options}
            rows.append(_row(named, llm, given, windows, expected))
        print(f"{options}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(_document(path, machine, rows, expected, wrong))


def _row(
    options: dict[str, str],
    llm: llmir.LLM,
    given: list[demo.Answer],
    windows: list[list[int]],
    expected: float,
) -> str:
    found = [a.rows_of(llm) for a in given]
    difference = max(np.abs(f - a.expected).max() for f, a in zip(found, given, strict=True))
    agreement = demo.agreement(found, given)
    perplexity = demo.perplexity([llm.score(w) for w in windows])
    return (
        f"| {options['weights']} | {options['activations']} | {options['kv_dtype']} "
        f"| {difference:.2g} "
        f"| {100 * agreement:.1f} % | {perplexity:.4f} "
        f"| {100 * (perplexity / expected - 1):+.4f} % |"
    )


def _document(path: Path, machine: str, rows: list[str], expected: float, wrong: list[int]) -> str:
    tools: dict[str, Any] = {**versions(), **_reference_versions()}
    listed = ", ".join(f"{name} {version}" for name, version in tools.items())
    table = "\n".join(rows)
    return f"""# Accuracy of the demo model against transformers in float32

{machine}

Date: {datetime.now(UTC):%Y-%m-%d}. Model: `{path.name}`. Versions: {listed}.
Command: `python benchmarks/accuracy.py`; what is measured is said at its top.

Perplexity of the reference: {expected:.4f}. Greedy tokens that are not the reference's, over
20 answers of {demo.NUM_POSITIONS} tokens, up to the first near tie of each: {len(wrong)}
(the first row).

| weights | activations | KV | largest logit difference | top-1 | perplexity | to the reference |
|---|---|---|---|---|---|---|
{table}
"""


def _reference_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("transformers", "torch", "gguf")}


if __name__ == "__main__":
    main()
