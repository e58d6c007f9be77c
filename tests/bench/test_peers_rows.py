"""Metrics by name, sides by name, ratios, the JSON rows, the tables and the drawing."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

import llmir
from llmir.bench.costs import Span
from llmir.bench.limits import MachineLimits
from llmir.bench.peers import llmir_side, table
from llmir.bench.peers.llmir_side import costs_of
from llmir.bench.peers.metrics import DECODE_STEPS, DEFAULT_METRICS, Metric, plot_metrics
from llmir.bench.peers.plot import draw
from llmir.bench.peers.registry import PEERS, peer, select
from llmir.bench.peers.rounds import Cell
from llmir.bench.peers.rows import PeerRow, make_row
from llmir.bench.peers.workers.serve import WARM_UP_STEPS
from llmir.cli.bench_peers import _Options, peers
from llmir.errors import OptionError, UnknownNameError

LIMITS = MachineLimits(
    num_threads=2,
    read_bytes_per_s=1e9,
    read_bytes_per_s_median=1e9,
    read_bytes_per_s_max=1e9,
    read_round_bytes=1,
    num_read_rounds=1,
    f32_flops_per_s=1e12,
    f32_flops_per_s_median=1e12,
    f32_flops_per_s_max=1e12,
    matmul_size=512,
    num_matmul_rounds=1,
)


@pytest.fixture(scope="module")
def tiny(short_steps: llmir.Artifact) -> llmir.Artifact:
    return short_steps


def cell(name: str, *rates: float, same: bool = False, error: str = "") -> Cell:
    return Cell(
        name=name,
        is_same_file=same,
        rates=list(rates),
        load_s=1.5,
        peak_memory_bytes=2_000_000,
        others_cpu_shares=[0.1] * len(rates),
        kv_dtype="f16",
        error=error,
    )


@pytest.fixture
def row(tiny: llmir.Artifact) -> PeerRow:
    cells = [
        cell("llmir", 40, 60, 50, same=True),
        cell("slow", 20, 30, 25, same=True),
        cell("fast", 90, 100, 110),
        cell("gone", error="it left"),
    ]
    return make_row(Metric(batch=2, depth=8), cells, costs_of(tiny), LIMITS)


@pytest.mark.parametrize("name", [*DEFAULT_METRICS, "prefill_128_t1", "decode_b4_d7_t2"])
def test_a_metric_is_its_name(name: str) -> None:
    assert Metric.parse(name).name == name


@pytest.mark.parametrize("name", ["decode", "decode_b0_d1", "prefill_0", "prefill_8_t0", "x"])
def test_what_is_no_metric(name: str) -> None:
    with pytest.raises(OptionError, match="decode_b1_d512"):
        Metric.parse(name)


def test_token_counts() -> None:
    decode = Metric.parse("decode_b16_d512")
    assert (decode.batch, decode.depth, decode.is_prefill) == (16, 512, False)
    assert decode.tokens_timed == 16 * DECODE_STEPS
    assert decode.tokens_per_seq == 512 + WARM_UP_STEPS + DECODE_STEPS
    assert Metric.parse("decode_b1_d0").tokens_per_seq == 1 + WARM_UP_STEPS + DECODE_STEPS
    prefill = Metric.parse("prefill_512_t1")
    assert (prefill.tokens_timed, prefill.tokens_per_seq, prefill.threads) == (512, 512, 1)
    assert decode.command(3) == {
        "do": "decode",
        "batch": 16,
        "depth": 512,
        "steps": DECODE_STEPS,
        "seed": 3,
    }
    assert DECODE_STEPS >= 16


def test_the_work_of_a_metric(tiny: llmir.Artifact) -> None:
    costs = costs_of(tiny)
    first = 8 + WARM_UP_STEPS
    steps = [costs.step_bytes([Span(at, at + 1)] * 2) for at in range(first, first + DECODE_STEPS)]
    assert Metric(batch=2, depth=8).unavoidable_bytes(costs) == sum(steps)
    flops = costs.step_flops([Span(0, 48)], 1)
    assert Metric(prompt_tokens=48).unavoidable_flops(costs) == flops


def test_ratios_are_of_medians(row: PeerRow) -> None:
    assert row.best == "fast"
    assert row.ratio_to_best == pytest.approx(0.5)
    assert row.ratio_to_same_file == pytest.approx(2.0)


def test_the_share_of_the_limit(row: PeerRow, tiny: llmir.Artifact) -> None:
    costs = costs_of(tiny)
    per_token = row.metric.unavoidable_bytes(costs) / row.metric.tokens_timed
    assert row.limit == "read bandwidth"
    assert row.share_of_limit == pytest.approx(per_token * 50 / 1e9)
    prefill = Metric(prompt_tokens=48)
    share = make_row(prefill, [cell("llmir", 10)], costs_of(tiny), LIMITS)
    assert share.limit == "f32 arithmetic"
    flops = prefill.unavoidable_flops(costs) / 48
    assert share.share_of_limit == pytest.approx(flops * 10 / 1e12)
    other_threads = Metric(prompt_tokens=48, threads=1)
    assert (
        make_row(other_threads, [cell("llmir", 10)], costs_of(tiny), LIMITS).share_of_limit is None
    )


def test_without_a_peer_or_without_llmir_there_is_no_ratio(tiny: llmir.Artifact) -> None:
    alone = make_row(Metric(), [cell("llmir", 1)], costs_of(tiny), LIMITS)
    assert (alone.best, alone.ratio_to_best, alone.ratio_to_same_file) == ("", None, None)
    cells = [cell("llmir", error="x"), cell("fast", 5, same=True)]
    failed = make_row(Metric(), cells, costs_of(tiny), LIMITS)
    assert (failed.best, failed.ratio_to_best, failed.share_of_limit) == ("fast", None, None)
    assert failed.to_json({})["llmir"] is None


def test_the_json_row(row: PeerRow) -> None:
    data = row.to_json({"other": "no compiler"})
    assert data["metric"] == "decode_b2_d8"
    assert data["unit"] == "tok/s"
    assert data["llmir"] == 50
    assert data["peers"] == {"slow": 25, "fast": 100}
    assert data["ratio_to_best"] == pytest.approx(0.5)
    assert data["ratio_to_same_file"] == pytest.approx(2)
    assert data["share_of_limit"] == row.share_of_limit
    assert data["rounds"]["fast"] == [90, 100, 110]
    assert data["kv_dtype"]["llmir"] == "f16"
    assert data["errors"] == {"gone": "it left", "other": "no compiler"}


def test_the_tables(row: PeerRow) -> None:
    lines = table.summary([row]).splitlines()
    assert re.search(r"decode_b2_d8 +\| +50\.0 \| +100 \| fast +\| +0\.50 \| +2\.00 ", lines[2])
    text = table.details([row])
    assert len({len(line) for line in text.splitlines()}) == 1
    assert re.search(r"\| fast +\| f16 \| +100 \| +90\.0–110 \| +3 \| +0\.50 \|", text)
    assert all(re.search(r"\| +1\.5 \| +2 \|$", line) for line in text.splitlines()[2:])
    missing = table.failures([row], {"other": "no compiler"})
    assert missing.splitlines() == [
        "- other: not measured: no compiler",
        "- decode_b2_d8, gone: 0 rounds only: it left",
    ]
    assert table.failures([], {}) == ""


def test_the_drawing_is_well_formed_and_names_every_side(tiny: llmir.Artifact) -> None:
    def rows(metrics: list[Metric]) -> list[PeerRow]:
        cells = [cell("llmir", 5, 7, 6), cell("a & b", 50, 70), cell("gone", error="x")]
        return [make_row(metric, cells, costs_of(tiny), LIMITS) for metric in metrics]

    batches, depths = plot_metrics()
    svg = draw(rows(batches), rows(depths))
    text = "".join(ElementTree.fromstring(svg).itertext())
    for word in ("llmir", "a & b", "32", "4096", "tok/s"):
        assert word in text
    ElementTree.fromstring(draw([], []))


def test_every_peer_keeps_the_contract() -> None:
    for name in PEERS:
        plans = peer(name).sides("Q4_1", 2)
        assert name == peer(name).NAME
        assert len({plan.key for plan in plans}) == len({plan.name for plan in plans}) == len(plans)
        assert any(plan.by_default for plan in plans)
        for plan in plans:
            assert plan.name.startswith(name)
            assert plan.is_same_file == (plan.model is None)
            workers = Path(llmir.__file__).parent / "bench" / "peers" / "workers"
            assert (workers / f"{plan.worker}.py").is_file()
            for install in plan.environment.installs:
                before = ("", *install)
                packages = [
                    word
                    for word, option in zip(install, before, strict=False)
                    if not word.startswith("-") and option != "--no-binary"
                ]
                loose = [word for word in packages if "==" not in word]
                assert packages, f"{name} installs nothing: {install}"
                assert not loose, f"{name} installs what is not pinned: {loose}"


def test_sides_are_selected_by_name() -> None:
    names = [plan.name for plan in select(["llama.cpp:q4_0", "llama.cpp:file"], "Q4_1", 2)]
    assert names == ["llama.cpp Q4_0", "llama.cpp Q4_1"]
    by_default = select(["llama.cpp"], "Q4_1", 2)
    every = select(["llama.cpp:*", "llama.cpp"], "Q4_1", 2)
    assert {p.name for p in by_default} < {p.name for p in every}
    with pytest.raises(UnknownNameError, match="llama.cpp"):
        select(["ollama"], "Q4_1", 2)
    with pytest.raises(UnknownNameError, match="q8_0"):
        select(["llama.cpp:q9"], "Q4_1", 2)


def test_llmirs_options_for_all_metrics_or_one() -> None:
    decode, prefill = Metric.parse("decode_b1_d0"), Metric.parse("prefill_8")
    options = _Options(["page_size=32", "decode_b1_d0:kv_dtype=f16"], [decode, prefill])
    assert options.of(decode) == {"page_size": 32, "kv_dtype": "f16"}
    assert options.of(prefill) == {"page_size": 32}
    for text in ("page_size", "=3", "decode_b9_d9:kv_dtype=f16"):
        with pytest.raises(OptionError, match="llmir-option"):
            _Options([text], [decode])


def test_llmirs_side(tiny: llmir.Artifact, tmp_path: Path) -> None:
    llmir_side.check(tiny, [Metric(batch=4, depth=8)])
    with pytest.raises(OptionError, match="sequences in a step"):
        llmir_side.check(tiny, [Metric(batch=5, depth=8)])
    with pytest.raises(OptionError, match="tokens in a sequence"):
        llmir_side.check(tiny, [Metric(depth=1 << 20)])
    side = llmir_side.side(tiny, [Metric(batch=2, depth=8)], 2, tmp_path)
    assert side.load["spec"]["artifact"] == str(tiny.path)
    assert llmir_side.file_format(tiny) == "F32"


def test_the_options_of_the_command() -> None:
    options = [p for p in peers.params if isinstance(p, click.Option)]
    assert {max(option.opts, key=len) for option in options} == {
        "--peers",
        "--metrics",
        "--alternations",
        "--threads",
        "--llmir-option",
        "--peers-dir",
        "--plot",
        "--table",
        "--json",
    }
    assert all(option.help for option in options)
