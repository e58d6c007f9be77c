"""Streams that were closed before the command began, as daemons and cron have them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("redirect", "code", "out", "err"),
    [
        ("<&-", 7, "", "error: the prompt is empty\n"),
        (">&-", 0, "", ""),
        ("2>&-", 0, "answer", ""),
    ],
)
def test_run(redirect: str, code: int, out: str, err: str, tiny_artifact: Path) -> None:
    prompt = "" if redirect == "<&-" else "the thing"
    command = (
        f"{sys.executable} -m llmir run {tiny_artifact} {repr(prompt) if prompt else ''} --raw "
        f"--max-tokens 4 --temperature 0 --kv-cache-memory 4M {redirect}"
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, err)
    assert bool(done.stdout) == bool(out)
