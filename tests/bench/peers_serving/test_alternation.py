"""Scenarios and rounds on fake servers, and the rows and tables that come of them."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
from bench.peers_serving.test_server_process import server

from llmir.bench.peers.serving import rounds, scenarios
from llmir.bench.peers.serving.base import PEAK_MEMORY, Round, Scenario
from llmir.bench.peers.serving.offline_scenarios import Offline, Sampled
from llmir.bench.peers.serving.output import Output, summary
from llmir.bench.peers.serving.process import ServerProcess
from llmir.bench.peers.serving.rounds import Alternation, Cell
from llmir.bench.peers.serving.rows import make_rows
from llmir.bench.serve.datasets import Vocabulary
from llmir.errors import UnknownNameError

VOCABULARY = Vocabulary(range(100, 400))
SMOKE = scenarios.SMOKE


def stage(names: list[str]):  # type: ignore[no-untyped-def]
    return lambda name: names.append(name) or nullcontext()


@pytest.mark.parametrize("name", ["shared", "unshared", "one_client", "repeated_prompt", "mixed"])
def test_every_load_has_its_figures(tmp_path: Path, name: str) -> None:
    process = ServerProcess(server(tmp_path))
    try:
        process.resume()
        found = SMOKE[name].measure(process, Round(vocabulary=VOCABULARY, seed=1))
    finally:
        process.close()
    assert {value.name for value in SMOKE[name].values} <= set(found)
    assert all(math.isfinite(figure) and figure >= 0 for figure in found.values())
    if name in ("shared", "one_client"):
        # A token takes a millisecond at least, and a stream gives no more.
        assert found["mean_tpot"] >= 1
        clients = 4 if name == "shared" else 1
        assert 0 < found["output_throughput"] <= 1000 * clients
    if name == "repeated_prompt":
        # The fake takes 12.5 ms for 100 new tokens, and nothing for old ones.
        assert found["cold_ttft"] >= 12.5
        assert found["cached_over_cold_ttft"] == found["cached_ttft"] / found["cold_ttft"]
        assert found["cached_ttft"] < found["cold_ttft"]
    if name == "mixed":
        assert found["p99_over_median_itl"] == found["p99_itl"] / found["median_itl"] >= 1
        assert found["mean_long_ttft"] >= 12.5


def test_shared_prompts_are_warm_and_own_ones_are_not() -> None:
    """What a fake with a prefix cache would have to compute: the own tokens alone."""
    whole = {s.name: s for s in scenarios.SCENARIOS.values()}
    assert "256 shared and cached + 35 own tokens in, 64 out" in whole["shared"].about
    assert "291 own tokens in, 64 out" in whole["unshared"].about
    assert all(set(SMOKE) == set(whole) and SMOKE[name].kind == whole[name].kind for name in whole)


def test_sides_alternate_and_a_failing_one_is_left_out(tmp_path: Path) -> None:
    sides = [
        server(tmp_path, name="llmir", is_own=True),
        server(tmp_path, "short", name="b"),
        server(tmp_path, "dies", name="c"),
        server(tmp_path, name="d"),
    ]
    names: list[str] = []
    alternation = Alternation(VOCABULARY)
    try:
        (*_, cells) = alternation.run(SMOKE["one_client"], sides, 3, stage(names))
        # Their processes live on; those of a scenario that restarts do not.
        first = alternation.pool.get(sides[0])
        (*_, started) = alternation.run(SMOKE["start"], sides[:1], 2, stage([]))
        assert alternation.pool.get(sides[0]) is not first
    finally:
        alternation.close()
    assert [name.split(": ")[1] for name in names] == ["llmir", "b", "c", "d"] + ["llmir", "d"] * 2
    llmir, b, c, d = cells
    assert len(llmir.figures["output_throughput"]) == len(d.figures["mean_ttft"]) == 3
    assert len(llmir.others_cpu_shares) == len(llmir.client_cpu_shares) == 3
    assert min(d.figures[PEAK_MEMORY.name]) > 5
    assert (b.figures, "an answer has 3 tokens, and 4 were asked for" in b.error) == ({}, True)
    assert "ended with status 3" in c.error
    assert (llmir.is_own, d.is_own, llmir.versions) == (True, False, {"fake": "1.0"})
    assert len(started[0].figures["first_answer"]) == 2
    assert min(started[0].figures["first_answer"]) > 0


def test_a_server_that_starts_slowly_starts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "SLOW_START_S", 0.25)
    alternation = Alternation(VOCABULARY)
    sides = [server(tmp_path, "slow", name="llmir", is_own=True)]
    try:
        (*_, (cell,)) = alternation.run(SMOKE["start"], sides, 3, stage([]))
    finally:
        alternation.close()
    assert len(cell.figures["first_answer"]) == 1
    assert cell.error == ""


class FakeWorker:
    """A SideProcess that answers at once; sampling costs a quarter more."""

    peak_memory_bytes = 7_000_000
    load_s = 0.1

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.about = {"versions": {"fake": "2.0"}}

    def ask(self, command: dict) -> dict:
        self.asked.append(command)
        return {"seconds": 1.25 if command["temperature"] else 1.0, "others_cpu_share": 0.5}

    def close(self) -> None:
        pass


def test_offline_gives_every_side_the_same_prompts() -> None:
    offline = scenarios.SCENARIOS["offline"]
    sampled = scenarios.SCENARIOS["sampled"]
    assert isinstance(offline, Offline)
    assert isinstance(sampled, Sampled)
    one, other = FakeWorker(), FakeWorker()
    given = Round(vocabulary=VOCABULARY, seed=3)
    assert offline.measure(one, given) == {"output_throughput": 4096, "others_cpu_share": 0.5}
    offline.measure(other, given)
    assert one.asked == other.asked
    assert one.asked[0]["do"] == "generate"
    assert [len(p) for p in one.asked[0]["prompts"]] == [128] * 64
    found = sampled.measure(one, given)
    assert found["sampled_over_greedy"] == pytest.approx(0.8)
    assert [a["temperature"] for a in one.asked] == [0.0, 0.0, 0.8]
    assert one.asked[2]["top_p"] == 0.95
    assert not sampled.has_peers


# -- rows ------------------------------------------------------------------------------------


def cell(name: str, throughput: list[float], ttft: list[float], **more: object) -> Cell:
    made = Cell(name=name, is_same_file=bool(more.get("same")), is_own=name.startswith("llmir"))
    for out, first in zip(throughput, ttft, strict=True):
        made.add({"output_throughput": out, "mean_ttft": first, "client_cpu_share": 0.1})
    made.error = str(more.get("error", ""))
    return made


CELLS = [
    cell("llmir", [600, 500, 700], [100, 90, 110]),
    cell("llmir unchunked", [900] * 3, [1] * 3),
    cell("a", [200, 200, 200], [300, 300, 300]),
    cell("b", [150, 300, 310], [200, 200, 200]),
    cell("c", [100] * 3, [250] * 3, same=True),
    cell("d", [], [], error="it broke"),
]


def rows(scenario: Scenario = scenarios.SCENARIOS["shared"]) -> dict:
    return {row.name: row for row in make_rows(scenario, CELLS)}


def test_the_best_peer_is_the_one_that_is_best_in_the_figure() -> None:
    found = rows()
    out, ttft = found["shared/output_throughput"], found["shared/mean_ttft"]
    assert (out.own, out.best, out.ratio_to_best) == (600, "b", 2.0)
    assert (ttft.own, ttft.best, ttft.ratio_to_best) == (100, "b", 0.5)  # lower is better
    assert (out.ratio_to_same_file, ttft.ratio_to_same_file) == (6.0, 0.4)
    assert found["shared/p99_itl"].best == ""
    assert found["shared/p99_itl"].ratio_to_best is None
    assert set(found) == {
        f"shared/{name}"
        for name in (*"output_throughput mean_ttft p99_ttft mean_tpot p99_itl peak_memory".split(),)
    }


def test_rows_are_json_with_the_names_of_the_other_comparison() -> None:
    data = rows()["shared/output_throughput"].to_json({"e": "cannot be installed"})
    assert data["peers"] == {"a": 200, "b": 300, "c": 100}
    assert data["llmir_variants"] == {"llmir unchunked": 900}
    assert data["rounds"]["llmir"] == [600, 500, 700]
    assert data["errors"] == {"e": "cannot be installed", "d": "it broke"}
    assert data["client_cpu_share"]["b"] == [0.1] * 3
    names = "metric unit llmir peers best ratio_to_best ratio_to_same_file rounds errors"
    assert set(names.split()) <= set(data)
    json.dumps(data, allow_nan=False)


def test_the_document_has_every_side_and_what_is_missing(tmp_path: Path) -> None:
    output = Output(
        model="tiny",
        command="llmir bench peers-serve tiny.gguf",
        machine={
            "cpu": "c",
            "arch": "a",
            "cores": 2,
            "memory_bytes": 1 << 30,
            "load_average_1min": 0.0,
        },
        failed={"e": "cannot be installed"},
        table_file=tmp_path / "t.md",
        json_file=tmp_path / "t.json",
    )
    output.update(list(rows().values()))
    text = (tmp_path / "t.md").read_text()
    flat = " ".join(text.split())
    assert "| shared/output_throughput | tok/s | higher | 600 | 300 | b | 2.00 | 6.00 |" in flat
    assert "| shared/mean_ttft | llmir unchunked | 1.00 | 1.00–1.00 | 3 | 100 |" in flat
    assert "- e: not measured: cannot be installed" in text
    assert "- shared, d: it broke" in text
    assert "16 clients, 64 requests of 256 shared" in text
    assert len(json.loads((tmp_path / "t.json").read_text())) == 6
    assert "Disturbed" not in text
    CELLS[2].add({"others_cpu_share": 0.4})
    try:
        assert "took 40 % of the CPU time" in output.document()
    finally:
        CELLS[2].others_cpu_shares.clear()
    assert summary([]).count("\n") == 1


def test_scenarios_are_selected_by_name() -> None:
    assert [s.name for s in scenarios.select(["mixed", "start"])] == ["mixed", "start"]
    assert len(scenarios.select([])) == 8
    assert scenarios.select(["shared"], is_smoke=True)[0].name == "shared"
    (mixed,) = scenarios.select(["mixed"], long_per_s=0.5)
    assert "0.5 per second" in mixed.about
    with pytest.raises(UnknownNameError, match="unknown scenario 'shred'"):
        scenarios.select(["shred"])
    assert all(dataclasses.is_dataclass(s) and s.about for s in scenarios.SCENARIOS.values())
