"""`llmir bench peers-serve` from end to end: llmir offline, fake servers; and how sides are made."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench.peers_serving.test_server_process import SCRIPT, server
from click.testing import CliRunner, Result
from random_gguf import random_gguf

from llmir.bench.peers import environments
from llmir.bench.peers.base import Environment
from llmir.bench.peers.serving import llama_server, llmir_server, registry
from llmir.bench.peers.serving.base import Server, ServerPlan
from llmir.bench.peers.serving.run import Comparison
from llmir.cli.bench_peers_serve import peers_serve
from llmir.errors import DeviceError, OptionError, UnknownNameError

ENVIRONMENT = Environment(name="fake", installs=(("fake==1",),))
Command = Callable[..., Result]


def plan(name: str, *fault: str, environment: Environment = ENVIRONMENT) -> ServerPlan:
    return ServerPlan(
        name=f"fake {name}",
        key=name,
        environment=environment,
        model=None,
        command=("{python}", str(SCRIPT), "{port}", *fault),
        overlay={"fake-1.dist-info/METADATA": "Name: fake\n"},
        versions={"fake": "1.0"},
    )


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command on the tiny model; llmir's own server is a fake one too."""

    def own(artifact: Any, *, name: str, arguments: list[str], **more: object) -> Server:
        return server(tmp_path, *arguments, name=name, is_own=True)

    def ensure(environment: Environment, peers_dir: Path, on_stage: object) -> Path:
        if environment.name == "broken":
            raise DeviceError("installing broken failed")
        return Path(sys.executable)

    broken = Environment(name="broken", installs=())
    plans = [plan("good"), plan("faulty", "short"), plan("broken", environment=broken)]
    monkeypatch.setattr(llmir_server, "server", own)
    monkeypatch.setattr("llmir.bench.peers.prepare.ensure", ensure)
    monkeypatch.setattr(registry, "PEERS", ("fake",))
    monkeypatch.setattr(registry, "SERVERS", {"fake": "fake"})
    monkeypatch.setattr(registry, "servers", lambda *args: plans)
    model = random_gguf("tiny", "q4_0", tmp_path)

    def run(*words: str) -> Result:
        given = [str(model), "--peers-dir", str(tmp_path / "peers"), "--smoke", *words]
        return CliRunner().invoke(peers_serve, given)

    return run


def test_to_its_end_with_failing_peers(command: Command, tmp_path: Path) -> None:
    rows_file, table_file = tmp_path / "rows.json", tmp_path / "table.md"
    result = command(
        *("--scenarios", "start,one_client,offline,sampled", "--alternations", "2"),
        *("--json", str(rows_file), "--table", str(table_file)),
    )
    assert result.exit_code == 0, result.output
    rows = {row["metric"]: row for row in json.loads(rows_file.read_text())}
    out = rows["one_client/output_throughput"]
    assert out["best"] == "fake good"
    assert out["ratio_to_best"] == pytest.approx(out["llmir"] / out["peers"]["fake good"])
    assert {name: len(found) for name, found in out["rounds"].items()} == {
        "llmir": 2,
        "fake good": 2,
        "fake faulty": 0,
    }
    assert out["errors"] == {
        "fake broken": "installing broken failed",
        "fake faulty": "an answer has 3 tokens, and 4 were asked for",
    }
    assert rows["start/first_answer"]["unit"] == "s"
    # The tiny model answers offline in a worker of its own, without peers here.
    offline = rows["offline/output_throughput"]
    assert len(offline["rounds"]["llmir"]) == 2
    assert min(offline["rounds"]["llmir"]) > 0
    sampled = rows["sampled/sampled_over_greedy"]
    assert (len(sampled["rounds"]["llmir"]), sampled["best"]) == (2, None)
    for text in (table_file.read_text(), result.output):
        assert "- fake broken: not measured: installing broken failed" in text
        assert str(tmp_path) not in text


def test_an_interrupted_run_keeps_what_it_measured(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Comparison.run

    def interrupted(self: Comparison, scenarios: Any, alternations: int, on_rows: Any) -> Any:
        def once(rows: Any) -> None:
            on_rows(rows)
            raise KeyboardInterrupt

        return whole(self, scenarios, alternations, once)

    monkeypatch.setattr(Comparison, "run", interrupted)
    rows_file = tmp_path / "rows.json"
    args = ("--peers", "fake:good", "--scenarios", "one_client", "--json", str(rows_file))
    result = command(*args, "--serve-args", "")
    assert result.exit_code == 1
    assert len(json.loads(rows_file.read_text())[0]["rounds"]["fake good"]) == 1
    assert "| one_client/output_throughput | fake good |" in " ".join(result.output.split())


def test_what_is_not_understood_is_refused(command: Command, tmp_path: Path) -> None:
    for args, kind in (
        (["--scenarios", "shred"], UnknownNameError),
        (["--peers", "vllm"], UnknownNameError),
        (["--peers", "fake:nothing"], UnknownNameError),
        (["--llmir-option", "kv_dtype"], OptionError),
    ):
        assert isinstance(command(*args).exception, kind), args
    missing = CliRunner().invoke(peers_serve, [str(tmp_path / "none.gguf")])
    assert "is no GGUF file" in str(missing.exception)


# -- how sides are made ------------------------------------------------------------------------


def test_peers_select_servers_and_workers_by_the_same_names() -> None:
    servers, workers = registry.select(["llama.cpp", "vllm", "openvino"], "Q4_1", 2)
    names = [plan.name for plan in servers]
    assert "llama-server Q4_1" in names
    assert "llama-server BF16 fa0 split" in names
    assert names[-1] == "vllm serve bf16"
    assert [plan.name for plan in workers if "openvino" in plan.name]
    one, other = registry.select(["llama.cpp:q4_0"], "Q4_1", 2)
    assert [plan.name for plan in one] == ["llama-server Q4_0"]
    assert [plan.name for plan in other] == ["llama.cpp Q4_0"]
    assert one[0].is_same_file is False
    # Some sides are of workers alone, some peers have no server.
    assert registry.select(["openvino:file"], "Q4_1", 2)[0] == []
    assert registry.select(["llama.cpp:file-kvq8"], "Q4_1", 2)[0] == []
    with pytest.raises(UnknownNameError, match="unknown peer 'transformers'"):
        registry.select(["transformers"], "Q4_1", 2)
    everything, _ = registry.select(["llama.cpp:*"], "Q4_1", 2)
    assert len(everything) == 20


def test_a_server_is_built_after_its_tools_are_installed(tmp_path: Path) -> None:
    here = tmp_path / "llama-server"
    made = environments.commands(llama_server.ENVIRONMENT, here)
    assert [Path(command[0]).name for command in made] == [
        *(Path(sys.executable).name, "env", "python", "python", "cmake", "cmake"),
    ]
    assert "llama-cpp-python==0.3.36" in made[2]
    assert f"-DCMAKE_CXX_FLAGS=-include {here}/amx_fix.h" in made[4]
    assert made[5][-1].isdigit()
    assert not [word for command in made for word in command if "{" in word]


def test_an_environment_without_steps_keeps_its_stamp() -> None:
    """Those that were made before there were steps are not made again."""
    assert "steps" not in environments.stamp_of(ENVIRONMENT)
    assert environments.stamp_of(llama_server.ENVIRONMENT)["steps"]


def test_a_server_gets_its_places_and_its_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "env" / "bin" / "python"
    monkeypatch.setattr("llmir.bench.peers.prepare.ensure", lambda *args: place)
    model = tmp_path / "model.gguf"
    model.write_text("weights")
    comparison = Comparison(
        model,
        [],
        [],
        lambda name: None,  # type: ignore[arg-type, return-value]
        num_threads=3,
        serve_arguments={},
        peers_dir=tmp_path / "peers",
        on_stage=lambda name: None,  # type: ignore[arg-type, return-value]
    )
    words = ("{here}/server", "{model}", "{threads}", "{host}", "{port}")
    made = comparison._made_server(
        ServerPlan(
            name="fake {x}",
            key="x",
            environment=ENVIRONMENT,
            model=None,
            command=words,
            variables={"A": "b"},
            overlay={"fake-1.dist-info/METADATA": "Name: fake\n"},
        )
    )
    overlay = tmp_path / "peers" / "overlays" / "fake"
    assert made.command == (
        *("env", "A=b", f"PYTHONPATH={overlay}", f"{tmp_path}/env/server"),
        *(str(model), "3", "{host}", "{port}"),
    )
    assert (overlay / "fake-1.dist-info" / "METADATA").read_text() == "Name: fake\n"
    assert not made.is_own
