"""llmir compile, and the progress of long work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.helpers import Llmir, in_terminal

from llmir import artifact as artifacts


def test_compile_and_find_again(
    llmir: Llmir, one_layer: Path, tmp_path: Path, cache_dir: Path
) -> None:
    """Where nobody watches, nothing but the document is printed."""
    output = tmp_path / "out"
    options = ("--target", "cpu,cpu:x86-64-v3", "--target", "cpu", "--kv-dtype", "bf16", "--json")
    sizes = (
        "--page-size",
        "8",
        "--max-model-len",
        "96",
        "--max-num-batched-tokens",
        "32",
        "--max-num-seqs",
        "8",
    )
    command = ("compile", one_layer, "-o", output, *options, *sizes)
    first, second = (json.loads(llmir.ok(*command)) for _ in range(2))
    assert first["artifact"] == str(output)
    assert first["targets"] == ["cpu:host", "cpu:x86-64-v3"]
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["cache_key"] == second["cache_key"]
    assert "tracing the model" in first["stage_seconds"]
    assert set(first["bytes"]) >= {"model.cpu-host.vmfb", "weights.packed.irpa"}
    manifest = artifacts.load(output).manifest
    assert (manifest.kv.dtype, manifest.kv.page_size) == ("bf16", 8)
    assert (manifest.limits.max_model_len, manifest.limits.max_num_batched_tokens) == (96, 32)
    assert manifest.limits.max_num_seqs == 8


def test_what_is_printed_for_people(
    llmir: Llmir, tiny_artifact: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    lines = dict(
        line.split(maxsplit=1)
        for line in llmir.ok("compile", tiny_checkpoint("llama")).splitlines()
    )
    assert lines["artifact"] == str(tiny_artifact)
    assert lines["targets"] == "cpu:host"
    assert "(found, compiled before)" in lines["time"]


def test_priority_from_file_and_option(llmir: Llmir, one_layer: Path, tmp_path: Path) -> None:
    file = tmp_path / "priority"
    file.write_text("# what to use\nrms_norm = portable\n\nrope=nobody  # the option wins\n")
    options = ("--op-priority-file", file, "--op-priority", "rope=portable", "--json")
    code, text = llmir.error("compile", one_layer, *options)
    assert code == 2
    assert text.startswith("unknown provider of llm.rope 'nobody'")
    file.write_text("rms_norm = portable # fine\n")
    document = json.loads(llmir.ok("compile", one_layer, *options))
    manifest = artifacts.load(document["artifact"]).manifest
    assert manifest.options["op_priority"] == {"rms_norm": ["portable"], "rope": ["portable"]}
    file.write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in llmir.error("compile", "m", *options)[1]


def test_print_ir_after(llmir: Llmir, one_layer: Path, tmp_path: Path) -> None:
    command = ("compile", one_layer, "-o", tmp_path / "out")
    code, text = llmir.error(*command, "--print-ir-after", "cse")
    assert (code, text[:18]) == (2, "unknown pass 'cse'")
    result = llmir(*command, "--print-ir-after", "dce-llm,cse-llm")
    assert result.code == 0
    cse, dce = result.err.index("IR after cse-llm"), result.err.index("IR after dce-llm")
    assert cse < dce
    assert '"llm.rms_norm"' in result.err


STAGES = """
import time
from llmir.cli.progress import stages
with stages(2) as on_stage:
    for name in ("reading the model", "tracing the model"):
        with on_stage(name):
            time.sleep(0.3)
"""


def test_stages_are_shown_in_a_terminal() -> None:
    code, screen = in_terminal([sys.executable, "-c", STAGES])
    assert code == 0
    assert "reading the model" in screen
    assert "tracing the model" in screen


def test_stages_are_not_shown_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    exec(STAGES.replace("0.3", "0"), {})
    assert capfd.readouterr() == ("", "")
