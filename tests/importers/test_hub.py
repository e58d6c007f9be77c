"""resolve_model against a local endpoint that speaks the hub's API, without one, and offline."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from llmir.errors import ModelNotFoundError
from llmir.importers.hub import resolve_model

SHA = "0123456789abcdef0123456789abcdef01234567"
HUB_ID = "tiny-org/tiny-model.v1"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
    "chat_template.jinja": b"{{ messages }}",
    "tokenizer.json": b"{}",
}
UNWANTED = {
    "pytorch_model.bin": b"a pickle",
    "consolidated.safetensors": b"the same again",
    "onnx/config.json": b"{}",
    "README.md": b"text",
}

# Runs in a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported.
SCRIPT = """
import json, sys
from llmir.errors import ModelNotFoundError
from llmir.importers import resolve_model

answers = []
for model, offline in json.loads(sys.argv[1]):
    try:
        answers.append(["path", str(resolve_model(model, offline=offline))])
    except ModelNotFoundError as error:
        answers.append(["error", str(error)])
print(json.dumps(answers))
"""


class Hub(BaseHTTPRequestHandler):
    """The three routes that snapshot_download uses: revision, tree, resolve."""

    requests: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.requests.append(path)
        files = FILES | UNWANTED
        if path == f"/api/models/{HUB_ID}/revision/main":
            siblings = [{"rfilename": name} for name in files]
            self.reply(json.dumps({"id": HUB_ID, "sha": SHA, "siblings": siblings}).encode())
        elif path == f"/api/models/{HUB_ID}/tree/{SHA}":
            tree = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in files.items()
            ]
            self.reply(json.dumps(tree).encode())
        elif path.startswith(f"/{HUB_ID}/resolve/{SHA}/") and path.rpartition("/")[2] in files:
            self.reply(files[path.rpartition("/")[2]])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    Hub.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(calls: list[tuple[str, bool]], home: Path, endpoint: str) -> list[list[str]]:
    """What resolve_model answers to each (model, offline), in a fresh process."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    # The root, so that the script finds llmir wherever pytest was started.
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(calls)],
        env=env,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[list[str]] = json.loads(done.stdout)
    return answers


def test_hub_id_is_downloaded_from_the_endpoint_and_kept(endpoint: str, tmp_path: Path) -> None:
    calls = [(HUB_ID, True), (HUB_ID, False), (HUB_ID, True), ("tiny-org/absent", False)]
    early, first, cached, absent = ask(calls, tmp_path, endpoint)
    assert early[0] == "error", "nothing is cached yet"
    kind, snapshot = first
    assert kind == "path"
    assert Path(snapshot).name == SHA
    assert {f.name: f.read_bytes() for f in Path(snapshot).iterdir()} == FILES
    assert cached == first
    assert absent[0] == "error"
    assert "'tiny-org/absent': no such file or directory; as a hub id" in absent[1]
    assert f"could not be downloaded from {endpoint}: RepositoryNotFoundError" in absent[1]
    assert not any(name in path for path in Hub.requests for name in UNWANTED)


def test_offline_and_unreachable(tmp_path: Path) -> None:
    # Port 9 (discard) of this machine: refused at once.
    calls = [(HUB_ID, True), (HUB_ID, False)]
    offline, unreachable = ask(calls, tmp_path, "http://127.0.0.1:9")
    assert offline == [
        "error",
        f"'{HUB_ID}': no such file or directory; as a hub id: it is not complete in the local "
        "cache, and offline mode forbids downloading. Unset HF_HUB_OFFLINE, or give a local path",
    ]
    assert unreachable[0] == "error"
    assert "could not be downloaded from http://127.0.0.1:9" in unreachable[1]
    assert "\n" not in unreachable[1]


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelNotFoundError, match="huggingface_hub is not installed"):
        resolve_model(HUB_ID, offline=False)


def test_a_path_that_exists_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "org" / "name"
    model.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model(model, offline=False) == model
    assert resolve_model("org/name", offline=False) == Path("org/name"), "not a hub id then"
    assert resolve_model("~/org", offline=False) == tmp_path / "org"


@pytest.mark.parametrize(
    "model",
    [
        "",
        "absent",
        "a/b/c",
        "./a",
        "../a/b",
        "/a/b",
        "~/absent",
        "dir/model.gguf",
        "org/na me",
        "org/.hidden",
        "org/name\0",
        "a/" + "x" * 5000,
    ],
)
def test_neither_path_nor_hub_id(model: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file or directory"):
        resolve_model(model, offline=True)
