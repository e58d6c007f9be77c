"""`llmir bench peers` from end to end: a tiny model, llmir itself, and fake peers beside it."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from random_gguf import random_gguf

from llmir.bench.peers import metrics, registry, rounds
from llmir.bench.peers import process as processes
from llmir.bench.peers.base import Environment, SidePlan
from llmir.bench.peers.rounds import Runner
from llmir.cli.bench_peers import peers
from llmir.errors import DeviceError

FAKE = """
class Side:
    def __init__(self, spec):
        self.at_fault = spec.get("at_fault")

    def about(self):
        return {"kv_dtype": "f16", "versions": {"fake": "1.0"}}

    def prefill(self, tokens, seed):
        if self.at_fault:
            raise RuntimeError("cannot prefill")
        return tokens / 100

    def decode(self, batch, depth, steps, seed, warm_up):
        return batch * steps / (10 + batch)
"""
ENVIRONMENT = Environment(name="fake", installs=(("fake==1",),))
BROKEN = replace(ENVIRONMENT, name="broken")
LIMIT_FIELDS = (
    *("num_threads read_bytes_per_s read_bytes_per_s_median read_bytes_per_s_max".split()),
    *("read_round_bytes num_read_rounds f32_flops_per_s f32_flops_per_s_median".split()),
    *("f32_flops_per_s_max matmul_size num_matmul_rounds".split()),
)


def plan(name: str, environment: Environment = ENVIRONMENT, **spec: object) -> SidePlan:
    return SidePlan(
        name=f"fake {name}",
        key=name,
        worker="with_fake",
        environment=environment,
        model=None,
        spec=spec,
        is_same_file=True,
    )


class FakePeer:
    NAME = "fake"

    def sides(self, file_format: str, num_threads: int) -> list[SidePlan]:
        return [plan("good"), plan("faulty", at_fault=True), plan("broken", BROKEN)]


def fake_ensure(environment: Environment, peers_dir: Path, on_stage: object) -> Path:
    if environment is BROKEN:
        raise DeviceError("installing broken failed")
    return Path(sys.executable)


Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command on the tiny model, the fake peer its only one."""
    (tmp_path / "serve.py").write_text(processes.SERVE.read_text())
    (tmp_path / "with_fake.py").write_text(FAKE)
    real = processes.SERVE

    def of_worker(python: Path | str, worker: str, variables: object) -> tuple[str, ...]:
        serve = tmp_path / "serve.py" if worker == "with_fake" else real
        return (str(python), str(serve), worker)

    monkeypatch.setattr("llmir.bench.peers.prepare.worker_command", of_worker)
    monkeypatch.setattr("llmir.bench.peers.prepare.ensure", fake_ensure)
    monkeypatch.setattr("llmir.bench.peers.registry.PEERS", {"fake": "fake"})
    monkeypatch.setattr(registry, "peer", lambda name: FakePeer())
    monkeypatch.setattr(metrics, "PLOT_BATCHES", (1, 2))
    monkeypatch.setattr(metrics, "PLOT_DEPTHS", (0, 8))
    monkeypatch.setattr(metrics, "PLOT_BATCH_DEPTH", 4)
    monkeypatch.setattr(
        "llmir.bench.peers.run.run_job", lambda job: dict.fromkeys(LIMIT_FIELDS, 1_000)
    )
    model = random_gguf("tiny", "q4_0", tmp_path)

    def run(*words: str) -> Result:
        given = [str(model), "--peers-dir", str(tmp_path / "peers"), *words]
        return CliRunner().invoke(peers, given, catch_exceptions=True)

    return run


def test_to_its_end_with_a_plot_and_failing_peers(command: Command, tmp_path: Path) -> None:
    svg, rows_file, table_file = (tmp_path / name for name in ("p.svg", "rows.json", "table.md"))
    result = command(
        *("--metrics", "prefill_8,decode_b1_d0", "--alternations", "2", "--plot", str(svg)),
        *("--json", str(rows_file), "--table", str(table_file)),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(rows_file.read_text())
    # The depth 0 of the plot is the metric that was asked for.
    names = "prefill_8 decode_b1_d0 decode_b1_d4 decode_b2_d4 decode_b1_d8"
    assert [row["metric"] for row in rows] == names.split()
    prefill, *decodes = rows
    assert prefill["peers"] == {"fake good": 100}
    assert prefill["errors"] == {
        "fake broken": "installing broken failed",
        "fake faulty": "RuntimeError: cannot prefill",
    }
    for row in decodes:
        assert {name: len(rates) for name, rates in row["rounds"].items()} == dict.fromkeys(
            ("llmir", "fake good", "fake faulty"), 2
        )
    drawn = "".join(ET.fromstring(svg.read_text()).itertext())
    assert "llmir" in drawn
    assert "fake good" in drawn
    assert svg.read_text().count("<circle") == 4 * 3  # metrics of the plot × sides
    text = table_file.read_text()
    for printed in (text, result.stdout):
        assert "- fake broken: not measured: installing broken failed" in printed
        assert "- prefill_8, fake faulty: 0 rounds only: RuntimeError: cannot prefill" in printed
    assert str(tmp_path) not in text


def test_an_interrupted_run_keeps_what_it_measured(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Runner.run

    def interrupted(self: Runner, metric: metrics.Metric, *args: object) -> Iterator[object]:
        for number, cells in enumerate(whole(self, metric, *args)):  # type: ignore[arg-type]
            yield cells
            if metric.depth == 4 and number == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(rounds.Runner, "run", interrupted)
    rows_file, table_file = tmp_path / "rows.json", tmp_path / "table.md"
    result = command(
        *("--peers", "fake:good", "--metrics", "decode_b1_d0,decode_b1_d4,decode_b2_d0"),
        *("--alternations", "3", "--json", str(rows_file), "--table", str(table_file)),
    )
    assert result.exit_code == 1
    rows = json.loads(rows_file.read_text())
    found = {row["metric"]: len(row["rounds"]["llmir"]) for row in rows}
    assert found == {"decode_b1_d0": 3, "decode_b1_d4": 2}
    for text in (table_file.read_text(), result.stdout):
        assert "| decode_b1_d4 | fake good |" in " ".join(text.split())
