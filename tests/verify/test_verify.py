"""llmir verify: the command, on tiny models on the CPU and on Vulkan."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli.helpers import Llmir
from parity import reference

import llmir
from llmir.artifact import ModuleEntry
from llmir.cli.output import check_writable
from llmir.errors import DeviceError
from llmir.verify.latency import compile_times
from llmir.verify.prompts import BUILT_IN

from .wrong_provider import wrong_silu


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Llmir:
    return Llmir(capsys)


@pytest.fixture(scope="module")
def both(tiny_checkpoint: Callable[..., Path]) -> llmir.Artifact:
    return llmir.compile(tiny_checkpoint("llama"), ["cpu", "vulkan"], kv_dtype="f32")


def verified(command: Llmir, *arguments: object) -> tuple[int, dict[str, Any]]:
    result = command("verify", *arguments, "--json")
    assert result.err == ""
    return result.code, json.loads(result.out)


def test_a_tiny_model_agrees_on_cpu_and_vulkan(
    command: Llmir, both: llmir.Artifact, tmp_path: Path
) -> None:
    """Its numbers are those of the logits that llmir.LLM gives, by torch's formulas."""
    report, listed = tmp_path / "report.md", tmp_path / "report.json"
    given = ("--devices", "cpu,vulkan://0", "--max-tokens", 6)
    out = command.ok("verify", both.path, *given, "--output", report, "--json", listed)
    assert out == report.read_text()
    assert out.startswith("# PASS: ")
    found = json.loads(listed.read_text())
    assert found["command"] in out
    assert f"--devices {given[1]}" in found["command"]
    (pair,) = found["pairs"]
    assert (pair["reference"], pair["other"], pair["passed"]) == ("cpu", "vulkan://0", True)
    assert [p["name"] for p in pair["prompts"]] == list(BUILT_IN)
    assert pair["first_divergence"] is None
    assert pair["top1_agreement"] == 1

    cpu, vulkan = (
        llmir.LLM(both, device=d, kv_cache_memory_bytes=8 << 20) for d in ("cpu", "vulkan://0")
    )
    params = llmir.SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    (output,) = cpu.generate([BUILT_IN["numbers"]], params)
    ids = [*output.prompt_token_ids, *output.outputs[0].token_ids[:-1]]
    p, q = (torch.from_numpy(llm.logits(ids)).double() for llm in (cpu, vulkan))
    row = next(r for r in pair["prompts"] if r["name"] == "numbers")
    assert row["num_positions"] == len(ids)
    assert row["max_abs_logit_diff"] == pytest.approx((p - q).abs().max().item(), rel=1e-6)
    kl = torch.nn.functional.kl_div(
        q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert row["mean_kl"] == pytest.approx(kl.item(), rel=1e-4, abs=1e-14)


def test_thresholds_make_it_fail_and_the_ops_are_looked_at(
    command: Llmir, both: llmir.Artifact
) -> None:
    given = ("--devices", "cpu,vulkan", "--built-in", "prose", "--max-tokens", 3)
    code, found = verified(command, both.path, *given, "--max-logit-diff", 1e-9)
    assert code == 9
    (pair,) = found["pairs"]
    assert not pair["passed"]
    assert pair["reasons"] == [
        f"a logit differs by {pair['max_abs_logit_diff']:.3g}, more than 1e-09"
    ]
    ops = {(row["side"], row["op"]) for row in found["ops"]}
    assert {
        ("cpu", "paged_attention"),
        ("vulkan", "paged_attention"),
        ("vulkan", "rms_norm"),
    } <= ops
    assert not any(row["is_wrong"] for row in found["ops"])
    assert max(row["error"] for row in found["ops"]) < 1e-5


@pytest.mark.parametrize("failure", ["device", "not listed"])
def test_the_comparison_is_told_where_the_ops_cannot_be_run(
    command: Llmir, both: llmir.Artifact, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """A driver that fails in the search, and an artifact that does not list its ops."""
    if failure == "device":

        def lost(*_: object) -> None:
            raise DeviceError("llm.silu_mul failed on vulkan: device lost")

        monkeypatch.setattr("llmir.verify.ops._Runner", lost)
        monkeypatch.setattr("llmir.compiler.op_modules.compile_alone", lambda *_: None)
    else:
        none = tuple(dataclasses.replace(m, calls=()) for m in both.manifest.modules)
        manifest = dataclasses.replace(both.manifest, modules=none)
        without = dataclasses.replace(both, manifest=manifest)
        monkeypatch.setattr("llmir.artifact.load", lambda *_, **__: without)
    given = (both.path, "--devices", "cpu,vulkan", "--built-in", "prose", "--max-tokens", 1)
    code, found = verified(command, *given, "--max-logit-diff", 1e-9)
    assert code == 9
    assert found["pairs"][0]["max_abs_logit_diff"] > 1e-9
    assert found["ops"] is None
    said = "device lost" if failure == "device" else "does not list the ops of"
    assert [said in note for note in found["notes"]] == [True, True]
    assert found["notes"][0].startswith("The ops could not all be run alone on cpu: ")
    if failure == "device":  # asked for by name: what they are asked to prove is not proved
        code, found = verified(command, *given, "--ops")
        assert (code, found["pairs"][0]["passed"]) == (9, True)
        assert found["ops_missing"] == ["cpu", "vulkan"]
    else:
        code, message = command.error("verify", *given, "--ops")
        assert code == 5
        assert "does not list the ops of" in message


def test_compile_times_are_of_targets_that_both_have(both: llmir.Artifact) -> None:
    shared = {"tracing the model": 1.0, "lowering for cpu": 2.0, "compiling for cpu": 4.0}
    more = {**shared, "lowering for vulkan": 8.0, "compiling for vulkan": 16.0}
    cpu, vulkan = both.manifest.modules
    cpu = dataclasses.replace(cpu, target="cpu")

    def made(seconds: dict[str, float], *modules: ModuleEntry) -> llmir.Artifact:
        manifest = dataclasses.replace(both.manifest, modules=modules, compile_seconds=seconds)
        return dataclasses.replace(both, manifest=manifest)

    rows = compile_times(made(shared, cpu), made(more, cpu, vulkan))
    assert [row.what for row in rows] == [*shared, "all stages, of the targets that both have"]
    assert [(row.before, row.after) for row in rows][-2:] == [(4, 4), (7, 7)]
    rows = compile_times(made(more, cpu, vulkan), made(more, cpu, vulkan))
    assert (rows[-1].what, rows[-1].after) == ("all stages", 31)


def test_where_the_report_goes_is_looked_at_first(
    command: Llmir, both: llmir.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmir.verify.run.verify", lambda *_: pytest.fail("it ran"))
    given = ("verify", both.path, "--devices", "cpu,vulkan")
    for option in ("--output", "--json"):
        code, message = command.error(*given, option, tmp_path / "none" / "report")
        assert code == 8
        assert str(tmp_path / "none" / "report") in message
    kept = tmp_path / "kept.md"
    kept.write_text("what was there")
    check_writable(kept, tmp_path / "new.md", "-", None)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.md"]
    assert kept.read_text() == "what was there"


def test_a_wrong_lowering_is_named(command: Llmir, one_layer: Path, tmp_path: Path) -> None:
    """A third party's provider with a wrong constant, in one artifact of two."""
    right = llmir.compile(one_layer).path
    with wrong_silu("cpu") as priority:
        wrong = llmir.compile(one_layer, output=tmp_path / "wrong", op_priority=priority).path
        given = (wrong, "--against", right, "--no-latency", "--devices", "cpu", "--max-tokens", 3)
        result = command("verify", *given)
    assert result.code == 9
    assert "At fault: llm.silu_mul (silu_mul) by wrong on cpu." in result.out
    assert result.out.count("WRONG") == 1
    assert "## Compile time" in result.out


@pytest.mark.targets
def test_a_wrong_lowering_on_one_device_is_named(
    command: Llmir, one_layer: Path, tmp_path: Path
) -> None:
    with wrong_silu("vulkan") as priority:
        both = llmir.compile(
            one_layer,
            ["cpu", "vulkan"],
            output=tmp_path / "wrong",
            op_priority=priority,
            kv_dtype="f32",
        ).path
        code, found = verified(command, both, "--devices", "cpu,vulkan", "--max-tokens", 3)
    assert code == 9
    (wrong,) = (row for row in found["ops"] if row["is_wrong"])
    assert (wrong["side"], wrong["op"], wrong["provider"]) == ("vulkan", "silu_mul", "wrong")
    assert wrong == found["ops"][0]


def test_against_transformers(
    command: Llmir, tiny_checkpoint: Callable[..., Path], tiny_artifact: Path
) -> None:
    checkpoint = tiny_checkpoint("llama")
    given = ("--devices", "cpu", "--built-in", "code", "--max-tokens", 4)
    wanted = ("--reference", "transformers", "--reference-model", checkpoint)
    code, found = verified(command, tiny_artifact, *given, *wanted)
    assert code == 0
    (pair,) = found["pairs"]
    assert (pair["reference"], pair["other"]) == ("transformers", "cpu")
    llm = llmir.LLM(tiny_artifact)
    model = reference.from_checkpoint(checkpoint)
    prompt = llm.get_tokenizer().encode(BUILT_IN["code"])
    made = model.generate(
        torch.tensor([prompt]), max_new_tokens=4, min_new_tokens=4, do_sample=False
    )
    ids = made[0, :-1].tolist()
    difference = np.abs(reference.logits(model, ids) - llm.logits(ids)).max()
    assert pair["max_abs_logit_diff"] == pytest.approx(difference, rel=1e-3)
    assert pair["num_positions"] == len(ids)


def test_prompts_of_a_file(command: Llmir, both: llmir.Artifact, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = ['"Hello there"', "[5, 6, 7]", "", '{"messages": [{"role": "user", "content": "Hi"}]}']
    file.write_text("\n".join(lines))
    given = (both.path, "--devices", "cpu,vulkan", "--max-tokens", 2, "--prompts", file)
    code, found = verified(command, *given)
    assert code == 0
    names = [(p["name"], p["num_tokens"]) for p in found["prompts"]]
    assert [name for name, _ in names] == ["line 1", "line 2", "line 4"]
    assert names[1][1] == 3
    file.write_text('"good"\n{"text": "no prompt"}\n')
    code, message = command.error("verify", *given)
    assert code == 7
    assert message.startswith("prompts.jsonl line 2: ")


def test_what_cannot_be_compared_is_refused_by_name(
    command: Llmir, both: llmir.Artifact, tiny_artifact: Path, tmp_path: Path
) -> None:
    code, message = command.error("verify", tiny_artifact, "--devices", "cpu,vulkan")
    assert code == 5
    assert "has no module for device 'vulkan'" in message
    code, message = command.error("verify", both.path, "--devices", "cpu,vulkan://7")
    assert code == 6
    assert "no device 'vulkan://7'; devices on this machine: " in message
    code, message = command.error("verify", both.path, "--devices", "cpu")
    assert code == 2
    assert "there is one side alone, cpu" in message
    code, message = command.error("verify", both.path, "--devices", "cpu,cpu")
    assert (code, message) == (2, "device 'cpu' is given twice")
    for one, other in (("cpu", "local-task"), ("vulkan", "vulkan://0")):
        code, message = command.error("verify", both.path, "--devices", f"{one},{other}")
        assert code == 2
        assert message == f"'{one}' and '{other}' are the same device; give it once"
    code, message = command.error(
        "verify", both.path, "--devices", "cpu", "--reference", "transformers"
    )
    assert code == 2
    assert "give it with --reference-model" in message
    code, message = command.error(
        "verify", both.path, "--devices", "cpu,vulkan", "--min-top1", "95"
    )
    assert (code, message) == (2, "min-top1 must be 0 to 1, got 95.0")
    code, message = command.error(
        "verify", both.path, "--devices", "cpu,vulkan", "--built-in", "poem"
    )
    assert code == 2
    assert message.startswith("unknown built-in prompt 'poem'; known: chat, code, ")
