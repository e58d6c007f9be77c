"""`llmir bench serve` from end to end, against a fake server."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from bench.serve.fake_server import FakeServer, serving
from bench.serve.test_metrics import VLLM_NAMES
from click.testing import CliRunner, Result

from llmir.bench.serve.words import WORDS
from llmir.cli import main
from llmir.cli.bench_serve import serve
from llmir.errors import LlmirError, OptionError, RequestError


def run(server: FakeServer, *args: str) -> Result:
    lengths = ["--random-input-len", "6", "--random-output-len", "3"]
    words = ["--base-url", server.url, "--num-prompts", "8", *lengths, *args]
    return CliRunner().invoke(serve, words)


def test_a_load_is_measured_and_shown(tmp_path: Path) -> None:
    json_file, plot_file = tmp_path / "r.json", tmp_path / "r.svg"
    with serving(FakeServer(first_delay_s=0.02, gap_s=0.01)) as server:
        args = ["--max-concurrency", "2", "--warmup", "3", "--metric-percentiles", "50,99"]
        files = ["--json", str(json_file), "--plot", str(plot_file)]
        bounds = ["--goodput", "ttft:9000", "e2el:1", "--api-key", "secret"]
        result = run(server, *args, *files, *bounds)
    assert result.exit_code == 0, result.output
    assert "8 requests answered and 0 failed" in result.output
    assert "time to first token (ttft)" in result.output
    data = json.loads(json_file.read_text())
    names = VLLM_NAMES | {f"p50_{m}_ms" for m in ("ttft", "tpot", "itl", "e2el")}
    assert names <= set(data)
    assert {
        *"date backend model_id num_prompts request_rate burstiness max_concurrency".split()
    } <= set(data)
    assert (data["completed"], data["failed"], data["num_prompts"]) == (8, 0, 8)
    assert (data["total_input_tokens"], data["total_output_tokens"]) == (48, 24)
    assert data["request_goodput"] == 0  # no answer is whole within a millisecond
    assert data["request_rate"] == "inf"
    assert data["mean_ttft_ms"] >= 20
    assert data["mean_e2el_ms"] >= 40
    assert data["median_itl_ms"] == data["p50_itl_ms"] >= 10
    assert data["max_concurrent_requests"] == 2
    assert data["client_cpu_share"] > 0
    assert data["notes"] == []
    assert "ttfts" not in data
    assert "secret" not in json_file.read_text() + result.output
    ET.fromstring(plot_file.read_text())
    # A request to try, three to warm up, and those that count; all as ids that end at length.
    assert len(server.bodies) == 1 + 3 + 8
    assert all(isinstance(body["prompt"], list) for body in server.bodies)
    assert all(body["ignore_eos"] for body in server.bodies)
    assert server.headers[0]["authorization"] == "Bearer secret"


def test_the_seed_gives_the_same_requests_at_any_rate() -> None:
    seen = []
    for args in (["--request-rate", "200"], ["--max-concurrency", "1"], ["--seed", "1"]):
        with serving(FakeServer()) as server:
            assert run(server, *args).exit_code == 0
            seen.append(sorted(body["prompt"] for body in server.bodies[1:]))
    assert seen[0] == seen[1] != seen[2]


def test_json_alone_on_standard_output_and_details_if_wanted() -> None:
    with serving(FakeServer()) as server:
        result = run(server, "--json", "--save-detailed", "--request-rate", "400")
    data = json.loads(result.output)
    assert data["request_rate"] == 400
    assert data["output_lens"] == [3] * 8
    assert [len(itls) for itls in data["itls"]] == [2] * 8


def test_failures_are_counted_and_end_with_an_error() -> None:
    with serving(FakeServer(has_tokenize=False)) as server:
        run(server)
        first = server.bodies[3]["prompt"].split()[0]  # of the second request
        server.fails = {first: "500"}
        result = run(server)
        allowed = run(server, "--allow-failures", "--json")
    assert isinstance(result.exception, RequestError)
    assert "1 of 8 requests failed, the first: status 500: a fault" in str(result.exception)
    assert "error (1 ×): status 500: a fault" in result.output
    assert allowed.exit_code == 0
    data = json.loads(allowed.output)
    assert (data["completed"], data["failed"]) == (7, 1)


@pytest.mark.parametrize(
    ("refused", "note", "left_out"),
    [
        (("ignore_eos",), "ignore_eos is refused", "ignore_eos"),
        (("stream_options",), "stream_options is refused", "stream_options"),
        (("token_ids",), "token ids are refused", ""),
        (("token_ids", "ignore_eos"), "token ids are refused", "ignore_eos"),
    ],
)
def test_what_a_server_refuses_is_left_out_with_a_note(
    refused: tuple[str, ...], note: str, left_out: str
) -> None:
    with serving(FakeServer(refuses=refused)) as server:
        result = run(server)
    assert result.exit_code == 0, result.output
    assert f"note: {note}" in result.output
    assert len(server.bodies) == 1 + 8
    assert left_out not in server.bodies[-1]
    if "token_ids" in refused:
        assert set(server.bodies[-1]["prompt"].split()) <= set(WORDS)


def test_without_tokenize_and_usage_there_are_notes() -> None:
    with serving(FakeServer(has_tokenize=False, sends_usage=False)) as server:
        result = run(server)
    assert "note: no usage is sent: an event counts as a token" in result.output
    assert "note: no /tokenize here" in result.output
    assert "24 out" in result.output


def test_chat_and_a_wish_about_eos() -> None:
    with serving(FakeServer()) as server:
        result = run(server, "--backend", "openai-chat", "--no-ignore-eos", "--temperature", "0.8")
    assert result.exit_code == 0, result.output
    assert all("messages" in b and "ignore_eos" not in b for b in server.bodies)
    assert server.bodies[0]["temperature"] == 0.8
    assert "note:" not in result.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--plot", "x.png"], "drawings are SVG"),
        (["--percentile-metrics", "ttft,tft"], "no metric 'tft'"),
        (["--goodput", "itl:3"], "goodput 'itl:3'"),
        (["--arrival", "constant", "--burstiness", "2"], "burstiness is of the gamma process"),
    ],
)
def test_what_is_not_understood_is_refused(args: list[str], said: str) -> None:
    with serving(FakeServer()) as server:
        result = run(server, *args)
    assert isinstance(result.exception, OptionError)
    assert said in str(result.exception)


@pytest.mark.parametrize(
    "args",
    [
        ["tpot:50"],
        ["--metric-percentiles", "101"],
        ["--header", "nothing"],
        ["--header", "A=b\r\nC: d"],
        ["--extra-body", "[1]"],
        ["--request-rate", "0"],
        ["--random-range-ratio", "1"],
    ],
)
def test_wrong_usage_is_refused(args: list[str]) -> None:
    assert run(FakeServer(port=9), *args).exit_code == 2


def test_a_server_that_is_missing_or_refuses_everything() -> None:
    gone = FakeServer()
    with serving(gone):
        pass
    assert isinstance(run(gone).exception, ConnectionError)
    with serving(FakeServer(refuses=("model",))) as server:
        result = run(server)
    assert isinstance(result.exception, LlmirError)
    assert "status 400: model is refused" in str(result.exception)
    with serving(FakeServer()) as server:
        result = run(server, "--base-url", f"{server.url}/elsewhere", "--model", "m")
    assert "status 404: no such page" in str(result.exception)


def test_the_command_has_an_exit_code_of_its_own_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeServer()) as server:
        code = main(["bench", "serve", "--base-url", server.url, "--num-prompts", "2",
                     "--random-input-len", "4", "--random-output-len", "2"])  # fmt: skip
    assert code == 0
    assert "2 requests answered" in capsys.readouterr().out
    assert main(["bench", "serve", "--base-url", server.url]) == 8
    assert "no answer from" in capsys.readouterr().err
