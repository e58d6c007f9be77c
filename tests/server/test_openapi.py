"""schemathesis over the server's own OpenAPI: what it describes is what it does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from server.helpers import NAME, LiveServer, live_server

# What no schema of single fields can say is refused by name as well, with 400: a prompt that is
# too long, top_logprobs without logprobs.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404"]
[checks.negative_data_rejection]
expected-statuses = ["400", "404", "405", "413", "415"]
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(max_logprobs=5) as server:
        yield server
        server.wait_until_idle()


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "schemathesis.toml"
    path.write_text(CONFIG)
    return path


@pytest.mark.serving
@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize"]
)
def test_a_few_requests(
    server: LiveServer, config_file: Path, path: str, mode: GenerationMode
) -> None:
    config = schemathesis.Config.from_path(config_file)
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)

    @hypothesis.given(case=api[path]["POST"].as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=8,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def check(case: schemathesis.Case) -> None:
        response = case.call_and_validate()
        if response.status_code != 200:
            error = response.json()["error"]
            assert error["message"]
            assert error["type"] == "invalid_request_error"

    check()


@pytest.mark.serving
def test_all_that_schemathesis_has(server: LiveServer, config_file: Path, tmp_path: Path) -> None:
    command = ["-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    options = ["--config-file", config_file, "run", "--max-examples", 40, "--no-color"]
    done = subprocess.run(
        [sys.executable, *command, *map(str, options), f"{server.url}/openapi.json"],
        cwd=tmp_path,  # where it keeps its examples
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_description_names_what_this_server_serves(server: LiveServer) -> None:
    schemas = server.app.openapi()["components"]["schemas"]
    fields = schemas["ChatRequest"]["properties"]
    assert fields["model"]["anyOf"][0]["enum"] == [NAME]
    assert fields["top_logprobs"]["anyOf"][0]["maximum"] == 5
    assert schemas["CompletionRequest"]["additionalProperties"] is False
