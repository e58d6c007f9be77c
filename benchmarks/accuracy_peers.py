"""How near llmir and llama.cpp come to float32 on the same file and the same tokens.

    python benchmarks/accuracy_peers.py [MODEL] --output benchmarks/results/accuracy_….md

MODEL is a GGUF file of the llama architecture, the demo model unless given.  The reference is
transformers in float32 with the file's weights dequantised by the gguf package.  Everybody gets
the same token ids: the first 4,097 tokens of the GPL-3 text as 8 windows of 512 and the token
after the last, each window alone and without BOS, teacher forced.  Over those 4,096 positions:

    mean KL     Σ p · (log p - log q) in nats, p the reference's; and what 99 % stay below
    top-1       share where the likeliest token is the reference's
    perplexity  of the next tokens

llama.cpp runs in the environment that `llmir bench peers` makes, by its low-level API, in one
batch per window.  The file is rewritten after every row; the reference's logits are kept in
.cache/accuracy for the next run.  Takes about ten minutes of an idle machine, 3 GB of memory and
1 GB of disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from fetch_demo import fetch_demo  # noqa: E402

import llmir  # noqa: E402
from llmir.bench.peers.base import SidePlan  # noqa: E402
from llmir.bench.peers.environments import default_peers_dir  # noqa: E402
from llmir.bench.peers.llmir_side import file_format  # noqa: E402
from llmir.bench.peers.prepare import Preparer  # noqa: E402
from llmir.bench.peers.process import SideError, SideProcess  # noqa: E402
from llmir.bench.peers.registry import select  # noqa: E402
from llmir.bench.report import hardware, heading, versions  # noqa: E402
from llmir.compiler.activations import AUTO_OF_FOUR_BITS  # noqa: E402
from llmir.compiler.options import KV_DTYPES  # noqa: E402
from llmir.dialect_ext.activations import PRECISIONS  # noqa: E402
from llmir.digests import DigestMemo  # noqa: E402
from llmir.errors import LlmirError  # noqa: E402
from llmir.host import num_cores  # noqa: E402
from llmir.verify.divergence import Divergence  # noqa: E402
from tests.parity import demo_accuracy, reference  # noqa: E402

F32 = NDArray[np.float32]
WINDOW, NUM_WINDOWS = 512, 8
KEPT = ROOT / ".cache" / "accuracy"
PEER_SIDES = ("llama.cpp:file", "llama.cpp:file-fa0", "llama.cpp:file-plain", "llama.cpp:file-kvq8")
COLUMNS = (
    "engine | settings | KV | mean KL | ÷ llama.cpp | 99 % below | top-1 | perplexity "
    "| to float32 | to llama.cpp"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One engine with its settings; found: None where it refused, as `error` says."""

    engine: str
    settings: str
    kv: str
    found: Divergence | None
    error: str = ""


class Reference:
    """The windows, and the reference's logits of each in a file that is kept."""

    def __init__(self, model: Path) -> None:
        token_ids = demo_accuracy.text_tokens(model)[: WINDOW * NUM_WINDOWS + 1]
        assert len(token_ids) == WINDOW * NUM_WINDOWS + 1, "the text is too short"
        self.windows = [token_ids[i * WINDOW : (i + 1) * WINDOW] for i in range(NUM_WINDOWS)]
        self._next = [token_ids[i * WINDOW + 1 : (i + 1) * WINDOW + 1] for i in range(NUM_WINDOWS)]
        KEPT.mkdir(parents=True, exist_ok=True)
        tokens = hashlib.sha256(json.dumps(token_ids).encode()).hexdigest()[:8]
        self._name = f"{DigestMemo.default().sha256(model.absolute())[:16]}-{tokens}"
        if not all(self._file(i).is_file() for i in range(NUM_WINDOWS)):
            self._make(model)
        self.exact = Divergence()
        for i, next_ids in enumerate(self._next):
            self.exact.add(self._expected(i), self._expected(i), next_ids)

    def _make(self, model: Path) -> None:
        in_float32 = reference.from_llama_gguf(model)
        for i, window in enumerate(self.windows):
            half = self._file(i).with_suffix(".half.npy")
            np.save(half, reference.logits(in_float32, window))
            half.rename(self._file(i))

    def _file(self, window: int) -> Path:
        return KEPT / f"{self._name}-{window}.npy"

    def _expected(self, window: int) -> F32:
        return np.asarray(np.load(self._file(window), mmap_mode="r"))

    def compare(self, logits: Callable[[list[int]], F32]) -> Divergence:
        """All windows by `logits`: token ids → float32 [T, V]."""
        found = Divergence()
        for i, window in enumerate(self.windows):
            found.add(self._expected(i), logits(window), self._next[i])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of llmir and llama.cpp, one file.")
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file  [default: the demo's]")
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    parser.add_argument("--peers-dir", type=Path, default=default_peers_dir())
    given = parser.parse_args()
    path, machine = given.model or fetch_demo(), heading(hardware())
    tools: dict[str, str] = {}
    rows: list[Row] = []
    with _timed("reference"):
        expected = Reference(path)
    with tempfile.TemporaryDirectory() as directory:
        for row in _rows(path, expected, Path(directory), given.peers_dir, tools):
            rows.append(row)
            given.output.write_text(_document(path, machine, rows, expected.exact, tools))


def _rows(
    path: Path, expected: Reference, scratch: Path, peers_dir: Path, tools: dict[str, str]
) -> Iterator[Row]:
    """llmir with its defaults, llama.cpp's sides, llmir's other settings."""
    by_default = llmir.compile(path, output=scratch / "artifact")
    default, form = by_default.manifest.kv.dtype, file_format(by_default)
    yield _llmir_row(path, {}, expected, scratch / "artifact")
    preparer = Preparer(path, peers_dir, _timed)
    for plan in select(PEER_SIDES, form, num_cores()):
        yield _peer_row(plan, preparer, expected, scratch, tools)
    variants: list[dict[str, Any]] = [
        *({"kv_dtype": dtype} for dtype in KV_DTYPES if dtype not in ("auto", default)),
        *({"activations": precision} for precision in PRECISIONS),
        dict(reference.EXACT),
    ]
    for options in variants:
        yield _llmir_row(path, options, expected, scratch / "artifact")


def _llmir_row(path: Path, options: dict[str, Any], expected: Reference, place: Path) -> Row:
    settings = f"activations {options.get('activations', 'auto')}"
    with _timed(f"llmir {options}"):
        try:
            llm = llmir.LLM(artifact := llmir.compile(path, output=place, **options))
            found = expected.compare(llm.logits)
            return Row("llmir", settings, artifact.manifest.kv.dtype, found)
        except LlmirError as error:
            return Row("llmir", settings, options.get("kv_dtype", "auto"), None, str(error))


def _peer_row(
    plan: SidePlan,
    preparer: Preparer,
    expected: Reference,
    scratch: Path,
    tools: dict[str, str],
) -> Row:
    """A side of llama.cpp; its versions go into `tools`, its failure into the row."""
    settings = plan.key.removeprefix("file").removeprefix("-") or "its defaults"
    with _timed(plan.name):
        try:
            process = SideProcess(preparer.side(plan, num_cores()))
            tools.update(process.about["versions"])
            try:
                found = expected.compare(lambda window: _logits(process, window, scratch))
            finally:
                process.close()
            return Row("llama.cpp", settings, process.about["kv_dtype"], found)
        except (SideError, LlmirError, OSError) as error:
            return Row("llama.cpp", settings, "", None, str(error))


def _logits(process: SideProcess, window: list[int], scratch: Path) -> F32:
    place = scratch / "peer-logits"
    process.ask({"do": "logits", "tokens": window, "place": str(place)})
    return np.fromfile(place, np.float32).reshape(len(window), -1)


@contextmanager
def _timed(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


def _document(
    path: Path, machine: str, rows: list[Row], exact: Divergence, tools: dict[str, str]
) -> str:
    names = ("transformers", "torch", "gguf")
    listed = {**versions(), **{name: version(name) for name in names}, **tools}
    text = ", ".join(f"{name} {number}" for name, number in listed.items())
    # The strictest to compare with: what llama.cpp can do at best with the same file.
    measured = [row for row in rows if row.found and row.engine == "llama.cpp"]
    best = min(measured, key=lambda row: row.found.mean_kl if row.found else 0, default=None)
    table = "\n".join(_line(row, exact, best) for row in rows)
    auto = ", ".join(f"{role} {precision}" for role, precision in AUTO_OF_FOUR_BITS.items())
    base = f"`{best.settings}`, KV {best.kv}" if best else "none, it did not run"
    return f"""# Accuracy of llmir and llama.cpp on the same file, against float32

{machine}

Date: {datetime.now(UTC):%Y-%m-%d}. Model: `{path.name}`. Versions: {text}.
Command: `python benchmarks/accuracy_peers.py --output FILE`; what is measured is said at its top:
{exact.num_positions:,} teacher-forced positions, {NUM_WINDOWS} windows of {WINDOW} tokens.

Perplexity of the reference, transformers in float32: {exact.perplexity:.4f}. `÷ llama.cpp` and
`to llama.cpp` compare with the llama.cpp row of the least mean KL ({base}).
Activations `auto` ask for at least (a plus: or better, where that is as fast) {auto}.
llama.cpp's settings: its defaults are flash attention on and weights repacked for the CPU; `fa0`
is without flash attention, `plain` without either, `kvq8` with K and V in q8_0.

| {COLUMNS} |
|---|---|---|--:|--:|--:|--:|--:|--:|--:|
{table}
"""


def _line(row: Row, exact: Divergence, best: Row | None) -> str:
    start = f"| {row.engine} | {row.settings} | {row.kv} |"
    if row.found is None:
        return f"{start} {' '.join(row.error.split())} |||||||"
    kl, perplexity = row.found.mean_kl, row.found.perplexity
    times, against = "", ""
    if best is not None and best.found is not None:
        times = f"{kl / best.found.mean_kl:.2g}"
        against = f"{100 * (perplexity / best.found.perplexity - 1):+.3f} %"
    return (
        f"{start} {kl:.2e} | {times} | {row.found.kl_p99:.1e} "
        f"| {100 * row.found.agreement:.2f} % | {perplexity:.4f} "
        f"| {100 * (perplexity / exact.perplexity - 1):+.3f} % | {against} |"
    )


if __name__ == "__main__":
    main()
