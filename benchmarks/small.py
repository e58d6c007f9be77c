"""How small: compile time, module size, time to the first token, memory while serving.

    python benchmarks/small.py MODEL [--repeats 5]

Prints Markdown.  Everything is measured from outside, on fresh processes of the installed
`llmir`: compiling into an empty directory, then starting from the cache.

    first token   from the start of the process until the first piece of the answer is in
                  the pipe: imports, digests of the modules, loading, and the first step are
                  in it.  The first of all runs hashes the weights as well, and is shown apart.
    peak memory   the kernel's maximum resident set of the process, mapped weights included.
                  Allowed is 1.3 × weights (the .irpa) + KV + 300 MB (10⁶ bytes), KV being the
                  pages that the requests wrote: the pool is larger, and pages that nothing
                  was written to take no memory.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from llmir import artifact as artifacts
from llmir.artifact import Artifact
from llmir.bench.costs import StepCosts
from llmir.bench.report import hardware, heading, versions

MB = 1_000_000
QUESTION = "What is the capital of France?"
LLMIR = [sys.executable, "-c", "import sys; from llmir.cli import main; sys.exit(main())"]
LIMITS = {"compile_s": 60, "iree_s": 30, "first_token_s": 2, "vmfb_mb": 5}
# (requests, prompt tokens, output tokens) of each serving run.
LOADS = ((1, 16, 48), (32, 128, 64))

FIRST_TOKEN = """
import sys, llmir
llm = llmir.LLM(sys.argv[1])
params = llmir.SamplingParams(temperature=0, max_tokens=8)
prompt = llm.render_chat([{"role": "user", "content": sys.argv[2]}])
for output in llm.stream(prompt, params, delta=True):
    print(output.outputs[0].text, end="", flush=True)
"""
SERVE = """
import sys, llmir, numpy
num_requests, num_prompt, num_output = map(int, sys.argv[2:])
llm = llmir.LLM(sys.argv[1])
rng = numpy.random.default_rng(0)
prompts = rng.integers(0, llm.engine.limits.vocab_size, (num_requests, num_prompt)).tolist()
params = llmir.SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True)
outputs = llm.generate(prompts, params)
assert all(len(o.outputs[0].token_ids) == num_output for o in outputs)
"""


def first_byte(command: Sequence[str]) -> float:
    """Seconds from the start of a process to its first byte on stdout."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    piece = process.stdout.read(1)
    seconds = time.perf_counter() - start
    process.stdout.read()
    if process.wait() != 0 or not piece:
        raise SystemExit(f"failed: {shlex.join(command)}")
    return seconds


def peak_bytes(command: Sequence[str]) -> int:
    """The maximum resident set of a process."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"failed: {shlex.join(command)}")
    return usage.ru_maxrss * 1024


def verdict(found: float, limit: float) -> str:
    return "yes" if found <= limit else "NO"


def compile_report(model: str, place: Path) -> tuple[Artifact, list[str], str]:
    """The artifact, table rows, and a line with the time of each stage."""
    start = time.perf_counter()
    command = [*LLMIR, "compile", model, "-o", str(place)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    artifact = artifacts.load(place)
    manifest = artifact.manifest
    stages = manifest.compile_seconds
    iree = sum(s for name, s in stages.items() if name.startswith("compiling for"))
    vmfb = sum(f.num_bytes for name, f in manifest.files.items() if name.endswith(".vmfb")) / MB
    found = {
        "compile, whole process": (seconds, "s", LIMITS["compile_s"]),
        "of which iree-compile": (iree, "s", LIMITS["iree_s"]),
        ".vmfb without weights": (vmfb, "MB", LIMITS["vmfb_mb"]),
    }
    rows = [
        f"| {what} | {value:.2f} {unit} | {most} | {verdict(value, most)} |"
        for what, (value, unit, most) in found.items()
    ]
    return artifact, rows, f"Compile: {', '.join(f'{n} {s:.1f} s' for n, s in stages.items())}."


def first_token_report(model: str, repeats: int) -> list[str]:
    """Rows for `llmir run` and for Python, from the cache."""
    subprocess.run([*LLMIR, "compile", model], check=True, stdout=subprocess.DEVNULL)
    commands = {
        f"llmir run MODEL '{QUESTION}' --temperature 0": [
            *LLMIR,
            *("run", model, QUESTION, "--temperature", "0", "--max-tokens", "8"),
        ],
        "python: llmir.LLM(MODEL).stream(…)": [sys.executable, "-c", FIRST_TOKEN, model, QUESTION],
    }
    rows = []
    for name, command in commands.items():
        warm_up = first_byte(command)
        seconds = sorted(first_byte(command) for _ in range(repeats))
        middle = statistics.median(seconds)
        rows.append(
            f"| first token, `{name}` | {middle:.2f} s ({seconds[0]:.2f}–{seconds[-1]:.2f}, "
            f"first run {warm_up:.2f}) | {LIMITS['first_token_s']} "
            f"| {verdict(middle, LIMITS['first_token_s'])} |"
        )
    return rows


def memory_report(artifact: Artifact) -> list[str]:
    """Rows for each of LOADS."""
    costs = StepCosts.of(artifact.manifest, artifact.manifest.modules[0])
    weights = artifact.num_weight_bytes
    rows = []
    for requests, prompt, output in LOADS:
        numbers = [str(n) for n in (requests, prompt, output)]
        peak = peak_bytes([sys.executable, "-c", SERVE, str(artifact.path), *numbers])
        kv = costs.kv_bytes(requests, prompt + output)
        limit = 1.3 * weights + kv + 300 * MB
        rows.append(
            f"| peak memory, {requests} × ({prompt} in + {output} out) | {peak / MB:.0f} MB | "
            f"{limit / MB:.0f} (weights {weights / MB:.0f}, KV {kv / MB:.0f}) "
            f"| {verdict(peak, limit)} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{heading(hardware())}  ")
    print(f"{', '.join(f'{n} {v}' for n, v in versions().items())}; {date.today()}  ")
    print(f"`{shlex.join(['python', *sys.argv])}`\n")
    print("| | measured | at most | kept |\n| :--- | ---: | ---: | :---: |")
    with tempfile.TemporaryDirectory() as directory:
        artifact, rows, stages = compile_report(options.model, Path(directory) / "model.llmir")
        rows += first_token_report(options.model, options.repeats)
        rows += memory_report(artifact)
    print("\n".join([*rows, "", stages]))
    print(f"Load average after: {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
