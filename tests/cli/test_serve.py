"""llmir serve, as a process: its flags, its signals, and an answer of the demo model."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from cli.helpers import Llmir, spawn
from conftest import DEMO_QUESTION

from llmir.artifact import load
from llmir.cli.serve import default_name

HELLO = [{"role": "user", "content": "hello"}]


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server on a free port, and its address; it must end well."""
    with spawn("serve", *arguments, "--port", 0) as process:
        try:
            line = process.stdout.readline().decode()
            assert line.startswith("llmir serving "), process.stderr.read().decode()
            yield process, line.split()[-1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, process.stderr.read().decode()
        finally:
            process.kill()


def test_the_demo_model_answers(demo_artifact: Path) -> None:
    with (
        serving(demo_artifact, "--served-model-name", "demo", "--api-key", "k") as (process, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client,
    ):
        question = [{"role": "user", "content": DEMO_QUESTION}]
        answer = client.chat.completions.create(
            model="demo", messages=question, temperature=0, max_tokens=16
        )
        assert answer.choices[0].message.content == "The capital of France is Paris."
        assert answer.choices[0].finish_reason == "stop"
        chunks = client.chat.completions.create(
            model="demo", messages=question, temperature=0, max_tokens=16, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == "The capital of France is Paris."
        page = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer k"}).text
        assert 'llmir:generation_tokens_total{model_name="demo"} 16.0' in page
        modules = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in modules


def test_every_flag(tiny_artifact: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    limits = load(tiny_artifact).manifest.limits
    flags = {
        "--host": "127.0.0.1",
        "--api-key-file": keys,
        "--allowed-origins": '["https://a.example"]',
        "--chat-template": template,
        "--max-model-len": limits.max_model_len,
        "--max-num-seqs": 2,
        "--max-num-batched-tokens": 32,
        "--kv-cache-dtype": "auto",
        "--scheduling-policy": "priority",
        "--admission": "guaranteed_no_evict",
        "--max-prefill-per-decode": "inf",
        "--max-waiting": 3,
        "--max-logprobs": 2,
        "--max-body-size": "1K",
        "--request-timeout": 60,
        "--shutdown-timeout": 5,
        "--kv-cache-memory": "1M",
        "--threads": 1,
        "--speculative-config": '{"method": "ngram", "num_speculative_tokens": 2}',
        "--log-level": "warning",
    }
    names = ["--served-model-name", "a", "--served-model-name", "b"]
    arguments = [part for flag in flags.items() for part in flag]
    with serving(tiny_artifact, *names, *arguments, "--no-enable-prefix-caching", "--no-page") as (
        _,
        url,
    ):
        headers = {"Authorization": "Bearer second", "Origin": "https://a.example"}
        with httpx.Client(base_url=url, headers=headers) as client:
            response = client.get("/v1/models")
            assert [card["id"] for card in response.json()["data"]] == ["a", "b"]
            assert response.headers["access-control-allow-origin"] == "https://a.example"
            assert client.get("/").status_code == 404
            tokens = client.post("/tokenize", json={"messages": HELLO}).json()["tokens"]
            assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "hello"
            prompt = tokens * 40
            body = {"prompt": prompt[:64], "max_tokens": 2, "priority": 5}
            for _ in range(2):
                answer = client.post("/v1/completions", json=body)
                assert answer.status_code == 200
            assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
            for wrong in ({"logprobs": 3}, {"n": 4}):
                assert client.post("/v1/completions", json={**body, **wrong}).status_code == 400
            long = client.post("/v1/completions", json={"prompt": "a" * 2000})
            assert long.status_code == 413


def test_a_unix_socket(tiny_artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "llmir.sock"
    with serving(tiny_artifact, "--uds", path) as (_, address):
        assert address == f"unix:{path}"
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://llmir") as client:
            assert client.get("/ready").status_code == 200


def test_the_first_signal_lets_answers_end_and_the_second_does_not(tiny_artifact: Path) -> None:
    with spawn("serve", tiny_artifact, "--port", 0) as process:
        url = process.stdout.readline().decode().split()[-1]
        body = {"prompt": [5] * 8, "max_tokens": 400, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(20) == 0
    with spawn("serve", tiny_artifact, "--port", 0, "--max-num-seqs", 1) as process:
        url = process.stdout.readline().decode().split()[-1]
        body["n"] = 64
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(5) == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--max-model-len", 7], 2, "--max-model-len 7: the artifact was compiled for"),
        (["--kv-cache-dtype", "fp8"], 2, "--kv-cache-dtype fp8: the artifact was compiled for"),
        (["--weights", "q8_0"], 2, "weights: fixed when an artifact is compiled"),
        (["--max-num-seqs", 10**6], 2, "max_num_seqs must be between 1 and"),
        (["--chat-template", "nowhere.jinja"], 2, "there is no such file"),
        (["--chat-template", "{% for %}"], 2, "the chat template is wrong in line 1"),
        (["--api-key", "two words"], 2, "API key"),
        (["--api-key-file", os.devnull], 2, "has no key in it"),
        (["--allowed-origins", "[1]"], 2, "list of strings"),
        (["--allowed-origins", "[x"], 2, "is not JSON"),
        (["--speculative-config", "ngram"], 2, "is not JSON"),
        (["--speculative-config", '{"method": "eagle"}'], 2, "must be 'ngram', not 'eagle'"),
        (["--speculative-config", "[]"], 2, "--speculative-config must be a mapping"),
        (
            ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 0}'],
            2,
            "--speculative-config: num_speculative_tokens must be",
        ),
        (["--allowed-origins", "{"], 2, "--allowed-origins {: an origin is a scheme, a host"),
        (["--allowed-origins", "https://a.example/"], 2, "--allowed-origins https://a.example/:"),
        (["--max-waiting", 0], 2, "'--max-waiting': 0 is not in the range"),
        (["--max-logprobs", -1], 2, "'--max-logprobs': -1 is not in the range"),
        (["--max-body-size", 0], 2, "'--max-body-size': must be at least 1, not 0"),
        (["--request-timeout", -1], 2, "'--request-timeout': must be a number of at least 0"),
        (["--request-timeout", "nan"], 2, "'--request-timeout': must be a number of at least 0"),
        (["--shutdown-timeout", -1], 2, "'--shutdown-timeout': must be a number of at least 0"),
        (["--max-prefill-per-decode", "nan"], 2, "'--max-prefill-per-decode': must be a number"),
        (["--host", "nowhere.invalid"], 2, "--host nowhere.invalid: "),
        (["--host", "a" * 70], 2, f"--host {'a' * 70}: "),
        (["--uds", "/nowhere/a.sock"], 8, "No such file or directory: /nowhere/a.sock"),
    ],
)
def test_what_cannot_be(
    llmir: Llmir, tiny_artifact: Path, flags: list[object], code: int, message: str
) -> None:
    found = llmir.error("serve", tiny_artifact, *flags, "--port", 0)
    assert found[0] == code
    assert message in found[1]


def test_a_port_that_is_taken_is_said_before_the_model_is_opened(llmir: Llmir) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, message = llmir.error("serve", "/no/such/model.gguf", "--port", port)
    assert (code, message) == (8, f"Address already in use: 127.0.0.1:{port}")
    assert llmir.error("serve", "/no/such/model.gguf", "--port", 0)[0] == 3


def test_what_a_model_is_called(tmp_path: Path) -> None:
    for name in ("model.gguf", "model.llmir", "model"):
        (tmp_path / name).mkdir()
        assert default_name(str(tmp_path / name)) == "model"
    assert default_name("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"
