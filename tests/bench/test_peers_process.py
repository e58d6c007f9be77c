"""A side's process and the alternation, with a fake worker in place of an engine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmir.bench.peers import process as processes
from llmir.bench.peers.base import Environment, MadeModel, Side, SidePlan
from llmir.bench.peers.environments import HALF_MADE, STAMP, commands, ensure, stamp_of
from llmir.bench.peers.metrics import DECODE_STEPS, Metric
from llmir.bench.peers.prepare import Preparer
from llmir.bench.peers.process import SideError, SideProcess
from llmir.bench.peers.rounds import Runner
from llmir.digests import DigestMemo
from llmir.errors import DeviceError, OptionError

FAKE = """
import os, sys, time

class Side:
    def __init__(self, spec):
        if spec.get("broken"):
            raise ValueError("no such model")
        print("noise on stdout")
        self.rate = spec["rate"]

    def about(self):
        return {"kv_dtype": "f16", "versions": {"fake": "1.0"}}

    def prefill(self, tokens, seed):
        if tokens == 13:
            raise RuntimeError("unlucky")
        if tokens == 99:
            os._exit(7)
        if tokens == 77:
            time.sleep(60)
        return tokens / self.rate

    def decode(self, batch, depth, steps, seed, warm_up):
        return batch * steps / (self.rate + seed)

    def logits(self, tokens, place):
        import array
        with open(place, "wb") as out:
            array.array("f", tokens).tofile(out)

def make(spec):
    with open(spec["place"], "w") as out:
        out.write("made of " + spec["source"])
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workers directory that has the real serve.py and a fake engine."""
    workers = tmp_path / "workers"
    workers.mkdir()
    (workers / "serve.py").write_text(processes.SERVE.read_text())
    (workers / "with_fake.py").write_text(FAKE)
    monkeypatch.setattr("llmir.bench.peers.prepare.SERVE", workers / "serve.py")
    return workers


def side_of(workers: Path, name: str = "fake", **spec: object) -> Side:
    return Side(
        name=name,
        command=(sys.executable, str(workers / "serve.py"), "with_fake"),
        load={"do": "load", "spec": {"rate": 100.0, **spec}},
        log=workers / "log",
        is_same_file=True,
    )


def is_stopped(process: SideProcess) -> bool:
    """Whether it is, soon: a signal takes a moment to arrive."""
    for _ in range(500):
        stat = Path(f"/proc/{process._process.pid}/stat").read_text()
        if stat.rpartition(")")[2].split()[0] == "T":
            return True
        time.sleep(0.01)
    return False


def test_a_side_answers_and_is_stopped_between_rounds(fake: Path) -> None:
    process = SideProcess(side_of(fake))
    try:
        assert process.about["kv_dtype"] == "f16"
        assert process.load_s > 0
        for _ in range(2):
            assert is_stopped(process)
            answer = process.ask({"do": "prefill", "tokens": 50, "seed": 0})
            assert answer["seconds"] == 0.5
            assert answer["peak_memory_bytes"] > 1 << 20
            assert 0 <= answer["others_cpu_share"] <= 1
    finally:
        process.close()
    assert process._process.returncode == 0
    process.close()  # a second time does nothing


def test_what_goes_wrong_in_a_side_is_said(fake: Path) -> None:
    with pytest.raises(SideError, match="ValueError: no such model"):
        SideProcess(side_of(fake, broken=True))
    process = SideProcess(side_of(fake))
    with pytest.raises(SideError, match="RuntimeError: unlucky"):
        process.ask({"do": "prefill", "tokens": 13, "seed": 0})
    with pytest.raises(SideError, match="status 7"):
        process.ask({"do": "prefill", "tokens": 99, "seed": 0})
    with pytest.raises(SideError):
        process.ask({"do": "prefill", "tokens": 50, "seed": 0})
    process.close()


def test_a_side_that_does_not_answer_is_ended(fake: Path) -> None:
    process = SideProcess(side_of(fake))
    with pytest.raises(SideError, match="no answer"):
        process.ask({"do": "prefill", "tokens": 77, "seed": 0}, timeout_s=0.2)
    assert process._process.returncode == -9


def test_a_side_writes_logits(fake: Path, tmp_path: Path) -> None:
    process = SideProcess(side_of(fake))
    try:
        process.ask({"do": "logits", "tokens": [3, 1], "place": str(tmp_path / "logits")})
    finally:
        process.close()
    assert np.fromfile(tmp_path / "logits", np.float32).tolist() == [3, 1]


def test_a_stopped_side_does_not_outlive_who_started_it(fake: Path) -> None:
    side = side_of(fake)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from llmir.bench.peers.base import Side\n"
        "from llmir.bench.peers.process import SideProcess\n"
        f"side = Side(name='x', command={side.command!r}, load={side.load!r}, "
        f"log=Path({str(side.log)!r}))\n"
        "print(SideProcess(side)._process.pid, flush=True)\n"
        "os._exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    for _ in range(500):
        # Gone, or a zombie that whoever adopted it has not waited for.
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        time.sleep(0.01)
    pytest.fail("the side is still there")


def stage_log(names: list[str]):  # type: ignore[no-untyped-def]
    from contextlib import nullcontext

    return lambda name: names.append(name) or nullcontext()


def test_sides_alternate_and_a_failing_one_is_left_out(fake: Path) -> None:
    sides = [side_of(fake, "a"), side_of(fake, "b", broken=True), side_of(fake, "c", rate=200.0)]
    names: list[str] = []
    runner = Runner()
    try:
        grown = [
            [len(cell.rates) for cell in cells]
            for cells in runner.run(Metric(batch=2, depth=3), sides, 3, stage_log(names))
        ]
        (*_, cells) = runner.run(Metric(batch=2, depth=3), sides, 3, stage_log([]))
    finally:
        runner.close()
    assert [name.split(": ")[1] for name in names] == list("abcacac")
    assert grown == [[1, 0, 1], [2, 0, 2], [3, 0, 3]]
    a, b, c = cells
    # The fake's speed is its rate and the number of the alternation.
    assert a.rates == pytest.approx([100, 101, 102])
    assert a.median == pytest.approx(101)
    assert c.median == pytest.approx(201)
    assert (b.rates, b.median) == ([], None)
    assert "no such model" in b.error
    assert a.load_s is not None
    assert (a.kv_dtype, a.versions, a.is_same_file) == ("f16", {"fake": "1.0"}, True)
    assert len(a.others_cpu_shares) == 3


def test_the_process_used_longest_ago_goes_when_memory_is_short(fake: Path) -> None:
    free = [100 << 30]
    sides = [side_of(fake, "a"), side_of(fake, "b")]
    runner = Runner(free_bytes=lambda: free[0])
    try:
        list(runner.run(Metric(), sides, 1, stage_log([])))
        assert len(runner.pool.running) == 2
        free[0] = 0
        third = side_of(fake, "c")
        list(runner.run(Metric(), [third], 1, stage_log([])))
        assert runner.pool.running == [third]
    finally:
        runner.close()


ENVIRONMENT = Environment(
    name="fake",
    installs=(("one==1",), ("--no-deps", "two==2")),
    build={"FLAGS": "-include {here}/fix.h"},
    files={"fix.h": "// fixed\n"},
)


def test_how_an_environment_is_made(tmp_path: Path) -> None:
    venv, one, two = commands(ENVIRONMENT, tmp_path / "fake")
    assert venv == [sys.executable, "-m", "venv", str(tmp_path / "fake")]
    assert one[:3] == [
        "env",
        f"FLAGS=-include {tmp_path}/fake/fix.h",
        str(tmp_path / "fake" / "bin" / "python"),
    ]
    assert one[-1] == "one==1"
    assert two[-2:] == ["--no-deps", "two==2"]


def test_an_environment_is_made_once_and_told_by_its_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr("llmir.bench.peers.environments.commands", lambda e, here: [["true"]])
    for _ in range(2):
        python = ensure(ENVIRONMENT, tmp_path, stage_log(made))
        assert python == tmp_path / "fake" / "bin" / "python"
    assert made == ["installing fake"]
    assert (tmp_path / "fake" / "fix.h").read_text() == "// fixed\n"
    assert not (tmp_path / "fake" / HALF_MADE).exists()
    other = Environment(name="fake", installs=(("one==2",),))
    assert stamp_of(other) != stamp_of(ENVIRONMENT)
    ensure(other, tmp_path, stage_log(made))
    assert len(made) == 2
    assert not (tmp_path / "fake" / "fix.h").exists()


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "thesis.tex").touch()
    with pytest.raises(OptionError, match="remove it"):
        ensure(ENVIRONMENT, tmp_path, stage_log([]))
    assert (tmp_path / "fake" / "thesis.tex").exists()


def test_a_failed_installation_names_its_log_and_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmir.bench.peers.environments.commands", lambda e, here: [["false"]])
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"install-fake\.log"):
            ensure(ENVIRONMENT, tmp_path, stage_log([]))
    assert not (tmp_path / "fake" / STAMP).exists()


def test_a_model_is_made_once_and_the_side_gets_it(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "llmir.bench.peers.prepare.ensure", lambda e, peers_dir, on_stage: Path(sys.executable)
    )
    memo = DigestMemo(tmp_path / "digests.json")
    monkeypatch.setattr(DigestMemo, "default", classmethod(lambda cls: memo))
    model = tmp_path / "model.gguf"
    model.write_text("weights")
    plan = SidePlan(
        name="fake X",
        key="x",
        worker="with_fake",
        environment=ENVIRONMENT,
        model=MadeModel(form="x.gguf", worker="with_fake", environment=ENVIRONMENT),
        variables={"ANSWER": "42"},
        spec={"rate": 10.0},
    )
    names: list[str] = []
    side = Preparer(model, tmp_path / "peers", stage_log(names)).side(plan, 3)
    again = Preparer(model, tmp_path / "peers", stage_log(names)).side(plan, 1)
    assert names == ["making x.gguf"]
    spec = side.load["spec"]
    assert Path(spec["model"]).read_text() == f"made of {model}"
    assert (spec["threads"], again.load["spec"]["threads"], spec["rate"]) == (3, 1, 10.0)
    assert side.command[:3] == ("env", "ANSWER=42", sys.executable)
    runner = Runner()
    try:
        ((cell,),) = runner.run(Metric(batch=1, depth=0), [side], 1, stage_log([]))
    finally:
        runner.close()
    assert cell.rates == pytest.approx([10.0])
    assert Metric().tokens_timed == DECODE_STEPS
