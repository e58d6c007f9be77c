"""The demo model stays small: module size, compile time and memory (benchmarks/small.py measures)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import llmir

MB = 1_000_000
SERVE = """
import sys
import llmir
llm = llmir.LLM(sys.argv[1])
out = llm.generate([[5] * 60, [9] * 30], llmir.SamplingParams(temperature=0, max_tokens=4))
assert [len(o.outputs) for o in out] == [1, 1]
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


def test_module_and_compile_time(demo_artifact: Path) -> None:
    manifest = llmir.load(demo_artifact).manifest
    assert manifest.files["model.cpu-host.vmfb"].num_bytes <= 5 * MB
    seconds = manifest.compile_seconds
    assert sum(seconds.values()) <= 60
    assert seconds["compiling for cpu:host"] <= 30


def test_peak_memory_of_a_serving_process(demo_artifact: Path) -> None:
    """At most 1.3 × weights + KV + 300 MB, of a KV pool whose untouched pages cost nothing."""
    artifact = llmir.load(demo_artifact)
    done = subprocess.run(
        [sys.executable, "-c", SERVE, demo_artifact], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout) * 1024
    kv = artifact.manifest.kv
    pages = -(-64 // kv.page_size) + -(-34 // kv.page_size)
    kv_bytes = pages * kv.page_bytes * len(kv.group_of_layer)
    assert peak <= 1.3 * artifact.num_weight_bytes + kv_bytes + 300 * MB
