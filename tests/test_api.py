"""compile and LLM: options that take effect or are refused by name, and the cache."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmir
from llmir.compiler.options import cache_key, make_options
from llmir.compiler.versions import check_tools
from llmir.config import Settings
from llmir.errors import (
    ArtifactTargetError,
    ModelNotFoundError,
    OptionError,
    ToolVersionError,
    UnknownNameError,
)
from llmir.host import HostCpu
from llmir.importers.files import model_files

TINY_KV = 1 << 22
GREEDY = llmir.SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PROMPTS = [[5, 6, 7, 8, 9], [100, 101]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "compile has no option 'dtype'; it has: weights, kv_dtype, page"),
        ({"weights": "q3"}, "weights must be one of keep, f32, bf16, q8_0, .*; got 'q3'"),
        ({"kv_dtype": "i8"}, "kv_dtype must be one of auto, f32, f16, bf16, int8, fp8; got 'i8'"),
        ({"page_size": 12}, "page_size must be one of 8, 16, 32; got 12"),
        ({"max_num_seqs": 0}, "max_num_seqs must be a positive whole number; got 0"),
        ({"max_model_len": "1k"}, "max_model_len must be a positive whole number; got '1k'"),
        ({"max_model_len": 5000}, "max_model_len 5000 is beyond the 256 positions that llama has"),
        ({"max_num_seqs": 600}, "max_num_seqs 600 is more than max_num_batched_tokens 512"),
        ({"op_priority": ["rms_norm=portable"]}, "op_priority must be a mapping"),
        ({"op_priority": {"rms_norm": "portable"}}, "op_priority must be a mapping"),
        ({"op_priority": {"norm": ["portable"]}}, "unknown op 'norm'; known: add, append_kv"),
        ({"op_priority": {"rms_norm": ["cuda"]}}, "unknown provider of llm.rms_norm 'cuda'"),
        ({"target": []}, "compile needs at least one target"),
        ({"target": "cpu:z80"}, "unknown target 'cpu:z80'; known: cpu, "),
        ({"target": [3]}, "a target is a name such as 'cpu', not 3"),
        ({"print_ir_after": ["nothing"]}, "unknown pass 'nothing'; known: add-greedy-entry"),
    ],
)
def test_compile_refuses(
    options: dict[str, Any], message: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        llmir.compile(tiny_checkpoint("llama"), output=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cpu"}, "target: fixed when an artifact is compiled"),
        ({"weights": "bf16"}, "weights: fixed when an artifact is compiled"),
        ({"tensor_parallel_size": 2}, "LLM has no option 'tensor_parallel_size'; it has: model, t"),
        ({"verify_weights": "maybe"}, "verify_weights must be one of first, always, never"),
        ({"num_threads": 0}, "threads must be a positive whole number, got 0"),
        ({"num_threads": "2"}, "threads must be a positive whole number, got '2'"),
        ({"num_threads": 3, "device": "local-sync"}, "threads are for the device local-task"),
        ({"kv_cache_memory_bytes": "1G"}, "kv_cache_memory_bytes must be a positive whole"),
        ({"kv_cache_memory_bytes": 5000}, "a KV cache of 5000 bytes holds 0 pages; it needs at l"),
        ({"max_num_seqs": 65}, "max_num_seqs must be between 1 and 64, not 65"),
        ({"max_num_seqs": "2"}, "max_num_seqs must be between 1 and 64, not '2'"),
        ({"scheduling_policy": "sjf"}, "unknown scheduling_policy 'sjf'; known: fcfs, lpm, pri"),
        ({"admission": "all"}, "unknown admission 'all'; known: guaranteed_no_evict, max_util"),
        ({"max_overtakes": -1}, "max_overtakes must be at least 0, not -1"),
    ],
)
def test_llm_refuses(options: dict[str, Any], message: str, tiny_artifact: Path) -> None:
    for given in (tiny_artifact, llmir.load(tiny_artifact)):
        with pytest.raises(OptionError, match=message):
            llmir.LLM(given, **{"kv_cache_memory_bytes": TINY_KV, **options})


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.gguf"):
        llmir.compile(tmp_path / "nowhere.gguf")


@pytest.mark.parametrize(
    "limits",
    [
        {"max_num_seqs": 1},
        {"max_num_batched_tokens": 5},
        {"max_num_seqs": 2, "max_num_batched_tokens": 2},
        {"max_num_seqs": 3, "max_num_batched_tokens": 7},
        {"max_model_len": 17, "page_size": 32},
    ],
)
def test_small_limits(limits: dict[str, int], one_layer: Path) -> None:
    llm = llmir.LLM(one_layer, kv_cache_memory_bytes=TINY_KV, **limits)
    expected = llmir.LLM(one_layer, kv_cache_memory_bytes=TINY_KV)
    got, want = (
        [o.outputs[0].token_ids for o in m.generate(PROMPTS, GREEDY)] for m in (llm, expected)
    )
    assert got == want


def test_a_model_with_a_short_context(tiny_checkpoint: Callable[..., Path]) -> None:
    short = {"max_position_embeddings": 32, "num_hidden_layers": 1}
    made = llmir.compile(tiny_checkpoint("llama", **short))
    assert made.manifest.limits.max_model_len == 32


def test_larger_limits_are_compiled_for(one_layer: Path) -> None:
    llm = llmir.LLM(one_layer, max_num_seqs=80, kv_cache_memory_bytes=TINY_KV)
    assert llm.artifact.manifest.limits.max_num_seqs == 80


def test_the_device_decides_the_target(tiny_checkpoint: Callable[..., Path]) -> None:
    llm = llmir.LLM(tiny_checkpoint("llama"), device="vulkan://0", kv_cache_memory_bytes=TINY_KV)
    assert [m.target for m in llm.artifact.manifest.modules] == ["vulkan"]


def test_the_first_module_that_this_machine_can_run(one_layer: Path, tmp_path: Path) -> None:
    made = llmir.compile(one_layer, ["cuda:sm_80", "cpu"], tmp_path / "both.llmir")
    llm = llmir.LLM(made, kv_cache_memory_bytes=TINY_KV)
    assert llm.engine.core.runner.module.target == "cpu:host"  # type: ignore[attr-defined]
    manifest = json.loads((made.path / "manifest.json").read_text())
    del manifest["modules"][1]
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactTargetError, match="cuda:sm_80 needs a device of the driver cuda"):
        llmir.LLM(made.path)


def test_windows_and_a_kv_cache_too_small_for_all(tiny_checkpoint: Callable[..., Path]) -> None:
    """Two groups of layers, pages freed as the window moves, sequences preempted: same tokens."""
    artifact = llmir.compile(tiny_checkpoint("qwen2-window"))
    prompts = [list(range(5, 45)), list(range(60, 110)), list(range(120, 150))]
    params = llmir.SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    page = 3 * 2 * 2 * 16 * 16 * 4  # layers, K and V, heads, tokens, head dim, bytes
    roomy, tight = (
        [
            o.outputs[0].token_ids
            for o in llmir.LLM(artifact, kv_cache_memory_bytes=pages * page).generate(
                prompts, params
            )
        ]
        for pages in (100, 8)
    )
    assert roomy == tight


# -- the cache -------------------------------------------------------------------------


def key_of(model: Path, **options: Any) -> str:
    return cache_key(model_files(model), ["cpu:x86-64-v3"], make_options(options))


def test_the_cache_key_covers_what_decides_the_artifact(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model"))
    first = key_of(model)
    assert key_of(tiny_checkpoint("llama")) == first, "another place is no other model"
    assert key_of(model, page_size=8) != first
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").rename(model / "generation_config_old.json")
    assert key_of(model) != first, "a file's name says what it is"
    (model / "generation_config_old.json").unlink()
    (model / "generation_config.json").write_text(json.dumps({**config, "temperature": 0.5}))
    assert key_of(model) != first


def test_a_second_compile_is_a_hit_and_loads_no_compiler(one_layer: Path, cache_dir: Path) -> None:
    stages: list[str] = []

    def on_stage(name: str) -> Any:
        from contextlib import nullcontext

        stages.append(name)
        return nullcontext()

    first = llmir.compile(one_layer, on_stage=on_stage)
    assert stages[-1] == "writing weights"
    stages.clear()
    second = llmir.compile(one_layer, on_stage=on_stage)
    assert stages == ["finding the model", "looking in the cache"]
    assert second == first
    assert first.path.parent == cache_dir / "artifacts"
    # A damaged one is made again.
    (first.path / "model.cpu-host.vmfb").write_bytes(b"nothing")
    assert llmir.compile(one_layer).manifest.created >= first.manifest.created
    llmir.load(first.path)


def test_names_that_are_not_utf8(one_layer: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"mod\xe9l")
    shutil.copytree(one_layer, odd)
    made = llmir.compile(odd, output=tmp_path / "out.llmir")
    assert made.manifest.source == "mod\N{REPLACEMENT CHARACTER}l"
    assert llmir.load(made.path).manifest == made.manifest


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.from_env({"LLMIR_CACHE": "here"}).cache_dir == tmp_path / "here"
    assert Settings.from_env({"XDG_CACHE_HOME": "/x", "HF_HUB_OFFLINE": "1"}) == Settings(
        cache_dir=Path("/x/llmir"), hub_offline=True
    )
    with pytest.raises(OptionError, match="HF_HUB_OFFLINE must be 0 or 1, not 'maybe'"):
        Settings.from_env({"HF_HUB_OFFLINE": "maybe"})
    with pytest.raises(OptionError, match=r"no place for the cache .*; set LLMIR_CACHE"):
        Settings.from_env({"LLMIR_CACHE": "~no_such_user_here/x"})


def test_wrong_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "torch": "2.12.1+cpu",
        "iree-turbine": "3.9.0",
        "iree-base-compiler": "missing",
        "iree-base-runtime": "3.13.0",
    }
    monkeypatch.setattr("llmir.compiler.versions.tool_versions", lambda: found)
    check_tools.cache_clear()
    with pytest.raises(
        ToolVersionError,
        match=r"needs torch 2\.13\.0 \(found: 2\.12\.1\+cpu\), iree-base-compiler 3\.13\.0 "
        r"\(found: missing\); install them with: pip install 'llmir\[compile\]'",
    ):
        check_tools()
    check_tools.cache_clear()


def test_an_arm_cpus_features() -> None:
    """As a Graviton's /proc/cpuinfo lists them, against what LLVM calls them."""
    line = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimddp sve i8mm bf16"
    from llmir.host import normal_feature

    arm = HostCpu(arch="aarch64", model="", features=frozenset(map(normal_feature, line.split())))
    assert arm.missing("aarch64", ("neon", "dotprod", "i8mm", "fp-armv8", "sve2")) == ["sve2"]
    assert arm.missing("x86_64", ()) == ["the x86_64 architecture (this is aarch64)"]


def test_scores_are_the_logits_log_probabilities(tiny_artifact: Path) -> None:
    llm = llmir.LLM(tiny_artifact, kv_cache_memory_bytes=TINY_KV)
    ids = list(range(10, 40))
    logits = llm.logits(ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(llm.score(ids), expected[np.arange(29), ids[1:]], atol=1e-5)


def test_unknown_names_have_a_name() -> None:
    with pytest.raises(UnknownNameError) as error:
        llmir.compile("x", "nowhere")
    assert (error.value.kind, error.value.name) == ("target", "nowhere")
    assert "cpu" in error.value.known


def test_code_written_for_vllm_runs_with_the_import_changed(tiny_artifact: Path) -> None:
    from llmir import LLM, SamplingParams

    llm = LLM(model=str(tiny_artifact), kv_cache_memory_bytes=TINY_KV)
    params = SamplingParams(temperature=0.8, top_p=0.95, seed=3, max_tokens=5, logprobs=2)
    outputs = llm.generate(["the thing", {"prompt_token_ids": [5, 6, 7]}], params, use_tqdm=True)
    for output in outputs:
        completion = output.outputs[0]
        assert output.finished
        assert len(output.prompt_token_ids) > 0
        assert completion.finish_reason in ("length", "stop")
        assert len(completion.token_ids) == len(completion.logprobs or ()) <= 5
        assert completion.token_ids[0] in (completion.logprobs or ())[0]
    assert (outputs[0].prompt, outputs[1].prompt) == ("the thing", None)
    tokenizer = llm.get_tokenizer()
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert (
        llm.chat(messages, params)[0].prompt_token_ids
        == ids
        == tokenizer.encode(text, add_special_tokens=False)
    )


def test_async_llm_takes_the_options_of_llm(tiny_artifact: Path) -> None:
    expected = [
        llm_output.outputs[0].token_ids
        for llm_output in llmir.LLM(tiny_artifact, kv_cache_memory_bytes=TINY_KV).generate(
            PROMPTS, GREEDY
        )
    ]

    async def answer(llm: llmir.AsyncLLM, number: int) -> list[int]:
        stream = llm.generate(PROMPTS[number], GREEDY, request_id=str(number), final_only=True)
        return [output.outputs[0].token_ids async for output in stream][-1]

    async def main() -> list[list[int]]:
        async with llmir.AsyncLLM(
            tiny_artifact, kv_cache_memory_bytes=TINY_KV, enable_prefix_caching=False
        ) as llm:
            return await asyncio.gather(*(answer(llm, i) for i in range(len(PROMPTS))))

    assert asyncio.run(main()) == expected
    with pytest.raises(OptionError, match="max_num_seqs must be between 1 and"):
        llmir.AsyncLLM(tiny_artifact, max_num_seqs=10_000)
    with pytest.raises(OptionError, match="LLM has no option 'max_seqs'"):
        llmir.AsyncLLM(tiny_artifact, max_seqs=1)
