"""How many requests an artifact answers offline: all at once, through `LLM.generate`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmir import artifact as artifacts
from llmir.bench.measure import RunOptions, cpu_seconds, peak_memory_bytes, share_of_others
from llmir.bench.report import aligned, number
from llmir.bench.serve.datasets import RandomDataset, ShareGptDataset, Vocabulary, make_requests
from llmir.bench.step_parts import StepParts, share_lines, timed_parts
from llmir.engine import LLM, SamplingParams, SchedulerConfig
from llmir.engine.from_artifact import open_artifact
from llmir.errors import DeviceError, RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked.

    dataset_name        "random", with the lengths below, or "sharegpt", as serve.datasets has it
    prefix_len          tokens in front that all requests share
    num_warmups         requests of the same kind that are answered before
    detokenize          make text of the answers
    temperature, top_p  0 is greedy
    """

    num_prompts: int = 64
    dataset_name: str = "random"
    input_len: int = 128
    output_len: int = 64
    range_ratio: float = 0.0
    prefix_len: int = 0
    num_warmups: int = 2
    detokenize: bool = True
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What was measured.

    load_s               artifact, device, weights, tokenizer
    elapsed_s            from the first request's arrival to the last answer
    num_preemptions      of all requests
    peak_memory_bytes    VmHWM of the process; None where /proc has none
    others_cpu_share     CPU time that other processes took meanwhile, of all there was
    parts                where the time of the steps went
    """

    load_s: float
    elapsed_s: float
    num_requests: int
    total_input_tokens: int
    total_output_tokens: int
    num_preemptions: int
    peak_memory_bytes: int | None
    others_cpu_share: float | None
    parts: StepParts

    def to_json(self) -> dict[str, Any]:
        """The names of `vllm bench throughput`, then ours."""
        total = self.total_input_tokens + self.total_output_tokens
        return {
            "elapsed_time": self.elapsed_s,
            "num_requests": self.num_requests,
            "total_num_tokens": total,
            "requests_per_second": self.num_requests / self.elapsed_s,
            "tokens_per_second": total / self.elapsed_s,
            "total_input_tokens": self.total_input_tokens,
            "total_output_tokens": self.total_output_tokens,
            "output_tokens_per_second": self.total_output_tokens / self.elapsed_s,
            "num_preemptions": self.num_preemptions,
            "load_s": self.load_s,
            "peak_memory_bytes": self.peak_memory_bytes,
            "others_cpu_share": self.others_cpu_share,
            "steps": {
                "num_steps": self.parts.num_steps,
                "mean_step_ms": 1e3 * self.parts.step_s / max(self.parts.num_steps, 1),
                "longest_without_runner_ms": 1e3 * self.parts.longest_s,
                "parts_ms": {name: ms for name, ms, _ in share_lines(self.parts)},
                "parts_share": {name: share for name, _, share in share_lines(self.parts)},
            },
        }


def measure_throughput(
    path: Path, workload: Workload, options: RunOptions, config: SchedulerConfig
) -> Throughput:
    """Open the artifact and answer the workload once.  Peak memory is this whole process's.

    Raises as artifact.load and engine.from_artifact.open_artifact; RequestError for a request
    that cannot be served; DeviceError.
    """
    start = time.perf_counter()
    opened = open_artifact(
        artifacts.load(path),
        device=options.device,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        num_threads=options.num_threads,
    )
    load_s = time.perf_counter() - start
    if opened.tokenizer is None:
        raise RequestError("this model has no tokenizer, and prompts are tokens of words")
    llm = LLM(
        opened.runner,
        opened.tokenizer,
        generation_config=opened.generation_config,
        config=config,
    )
    tokenizer = opened.tokenizer
    vocabulary = Vocabulary.of_tokenizer(
        lambda text: tokenizer.encode(text, add_special_tokens=False)
    )
    requests, warmups = make_requests(
        _dataset(workload), workload.num_prompts, vocabulary, workload.seed, workload.num_warmups
    )
    params = [_params(workload, request.output_len, i) for i, request in enumerate(requests)]
    if warmups:
        llm.generate([r.prompt for r in warmups], params[0])
    before = cpu_seconds()
    with timed_parts(opened.runner) as parts:
        start = time.perf_counter()
        outputs = llm.generate([r.prompt for r in requests], params)
        elapsed_s = time.perf_counter() - start
        found = parts()
    num_output = sum(len(o.outputs[0].token_ids) for o in outputs)
    if num_output != sum(request.output_len for request in requests):
        raise DeviceError(f"{num_output} tokens were made, and others were asked for")
    return Throughput(
        load_s=load_s,
        elapsed_s=elapsed_s,
        num_requests=len(outputs),
        total_input_tokens=sum(request.input_len for request in requests),
        total_output_tokens=num_output,
        num_preemptions=sum(output.metrics.num_preemptions for output in outputs),
        peak_memory_bytes=peak_memory_bytes(),
        others_cpu_share=share_of_others(before, cpu_seconds()),
        parts=found,
    )


def from_result(result: Mapping[str, Any]) -> Throughput:
    """What the measuring process sent."""
    return Throughput(**{**result, "parts": StepParts(**result["parts"])})


def text(measured: Throughput) -> str:
    """Lines and a table; the table is Markdown too."""
    data = measured.to_json()
    steps = data["steps"]
    memory = measured.peak_memory_bytes
    others = measured.others_cpu_share
    lines = [
        f"{measured.num_requests} requests in {measured.elapsed_s:.2f} s: "
        f"{data['requests_per_second']:.2f} requests/s, "
        f"{number(data['output_tokens_per_second'])} output tok/s, "
        f"{number(data['tokens_per_second'])} tok/s in all",
        f"{measured.total_input_tokens:,} tokens in, {measured.total_output_tokens:,} out; "
        f"{measured.num_preemptions} preemptions",
        f"loaded in {measured.load_s:.2f} s"
        + ("" if memory is None else f"; peak memory {memory / 1e6:.0f} MB")
        + ("" if others is None else f"; others' CPU {100 * others:.0f} %"),
        "",
        f"{steps['num_steps']} steps of {number(steps['mean_step_ms'])} ms on average; "
        f"at most {number(steps['longest_without_runner_ms'])} ms of one outside the runner",
        aligned(
            ["part", "ms a step", "share"],
            [
                [name, f"{ms:.3f}", f"{100 * share:.1f} %"]
                for name, ms, share in share_lines(measured.parts)
            ],
        ),
    ]
    return "\n".join(lines)


def _dataset(workload: Workload) -> RandomDataset | ShareGptDataset:
    if workload.dataset_name == "sharegpt":
        return ShareGptDataset()
    return RandomDataset(
        **{field.name: getattr(workload, field.name) for field in dataclasses.fields(RandomDataset)}
    )


def _params(workload: Workload, output_len: int, index: int) -> SamplingParams:
    return SamplingParams(
        temperature=workload.temperature,
        top_p=workload.top_p,
        max_tokens=output_len,
        ignore_eos=True,
        seed=workload.seed + index,
        detokenize=workload.detokenize,
    )
