"""The demo model's artifact runs where llmir is not: iree-run-module gives the engine's logits.

tests/cli/test_export_inputs.py shows the same of tiny models and other KV dtypes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import llmir

PROMPT = "The capital of France is"


def test_iree_run_module_alone(demo_artifact: Path, tmp_path: Path) -> None:
    llmir_command = [sys.executable, "-c", "from llmir.cli import main; main()"]
    export = ["export-inputs", str(demo_artifact), "--prompt", PROMPT, "--raw"]
    subprocess.run([*llmir_command, *export, "-o", tmp_path / "step"], check=True)

    # iree-run-module may be a script in Python: a package of llmir's name that cannot be
    # imported stands before the real one.
    (tmp_path / "llmir.py").write_text("raise ImportError('llmir must not be needed')")
    tools = Path(sys.executable).parent
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    assert "must not be needed" in run(sys.executable, "-c", "import llmir").stderr
    done = run("sh", tmp_path / "step" / "run.sh")
    assert done.returncode == 0, done.stderr

    llm = llmir.LLM(demo_artifact)
    tokenizer = llm.get_tokenizer()
    logits = np.load(tmp_path / "step" / "logits.npy")
    np.testing.assert_array_equal(logits, llm.logits(tokenizer.encode(PROMPT))[-1:])
    assert tokenizer.decode([int(logits.argmax())]) == " Paris"
