"""llmir export-inputs: iree-run-module gives the engine's logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli.helpers import Llmir

import llmir as package


def run_module(directory: Path) -> np.ndarray:
    """What the written script computes."""
    tools = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", directory / "run.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.load(directory / "logits.npy")


# "auto" is bf16 where there are kernels, and the artifact that other tests have.
@pytest.mark.parametrize("kv_dtype", ["f32", "auto", "int8"])
@pytest.mark.parametrize("kind", ["llama", "qwen2-window"])
def test_the_logits_are_the_engines(
    llmir: Llmir,
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    kind: str,
    kv_dtype: str,
) -> None:
    artifact = package.compile(tiny_checkpoint(kind), kv_dtype=kv_dtype)
    llm = package.LLM(artifact, num_threads=2)
    prompt = "the thing in the inn, and then the other thing"  # longer than a window of 8
    for name, options in {"raw": ["--raw"], "chat": []}.items():
        command = ("export-inputs", artifact.path, "--prompt", prompt, "-o", tmp_path / name)
        document = json.loads(llmir.ok(*command, *options, "--json"))
        expected = llm.logits(document["token_ids"])[-1:]
        np.testing.assert_array_equal(run_module(tmp_path / name), expected)
        text = prompt if name == "raw" else llm.render_chat([{"role": "user", "content": prompt}])
        assert document["token_ids"] == (
            llm.get_tokenizer().encode(text) if isinstance(text, str) else text["prompt_token_ids"]
        )
        assert document["num_tokens"] == len(document["token_ids"])


def test_what_is_written(
    llmir: Llmir, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    artifact = package.compile(tiny_checkpoint("llama"), kv_dtype="f32").path
    out = llmir.ok("export-inputs", artifact, "--prompt", "in the inn", "-o", tmp_path / "a/b")
    assert out.startswith("wrote the step of ")
    directory = tmp_path / "a" / "b"
    arguments = package.load(artifact).manifest.arguments
    assert {p.name for p in directory.iterdir()} == {
        *(f"{a.name}.npy" for a in arguments),
        "run.sh",
    }
    pages = np.load(directory / "kv_0.npy")
    assert not pages.any()
    num_tokens = len(np.load(directory / "token_ids.npy"))
    assert len(pages) == 1 + -(-num_tokens // 16)
    script = (directory / "run.sh").read_text()
    inputs = [line.strip(" \\") for line in script.splitlines() if "--input=" in line]
    assert inputs == [f"--input=@{a.name}.npy" for a in arguments]
    assert "--function=step" in script
    assert "--output=@logits.npy" in script


def test_refused(llmir: Llmir, short_steps: package.Artifact, tmp_path: Path) -> None:
    artifact = short_steps.path
    command = ("export-inputs", artifact, "-o", tmp_path / "out")
    code, text = llmir.error(*command, "--prompt", "x" * 40)
    assert (code, "it must fit one, of at most 32 tokens" in text) == (7, True)
    code, text = llmir.error(*command, "--prompt", "x", "--target", "vulkan")
    assert (code, "cpu:host" in text) == (2, True)
    assert not (tmp_path / "out").exists()
