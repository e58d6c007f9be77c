"""llmir export-inputs: a step's arguments as files, for iree-run-module and other hosts."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from llmir import artifact as artifacts
from llmir.artifact import Artifact, ModuleEntry
from llmir.cli.model import read_prompt
from llmir.cli.options import json_option
from llmir.cli.output import print_json
from llmir.cli.run import messages
from llmir.engine import LLM, SamplingParams
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import OptionError, RequestError
from llmir.runtime.base import F32, I32, StepBatch, StepLimits, TopLogits
from llmir.targets import resolve

_NUMPY = {"f32": np.float32, "f16": np.float16, "i8": np.int8}
EPILOG = """\b
Examples:
  llmir export-inputs model.llmir --prompt "The capital of France is" --raw -o step
  sh step/run.sh
  python -c "import numpy; print(numpy.load('step/logits.npy').argmax())"
"""


@click.command("export-inputs", epilog=EPILOG)
@click.argument("artifact")
@click.option("--prompt", required=True, help='What the step computes; "-": standard input.')
@click.option("-o", "--output", required=True, help="Directory to write to; made if need be.")
@click.option("--raw", is_flag=True, help="Take the prompt as it stands, without chat template.")
@click.option("--target", help="Which of the artifact's targets.  [default: its first]")
@json_option
def export_inputs(
    artifact: str, prompt: str, output: str, raw: bool, target: str | None, as_json: bool
) -> None:
    """Write the arguments of ARTIFACT's `step` on a prompt, as .npy files.

    They are what the engine would pass, with KV pages for this prompt alone, zeroed.
    DIR/run.sh calls iree-run-module on them, which needs no llmir; it writes the logits of
    the prompt's last token to DIR/logits.npy.
    """
    opened = artifacts.load(artifact)
    manifest = opened.manifest
    module = manifest.modules[0] if target is None else manifest.module_for(resolve(target).name)
    batch, num_pages = first_step(opened, read_prompt(prompt), raw)
    directory = Path(output)
    directory.mkdir(parents=True, exist_ok=True)
    inputs = _write_arguments(directory, opened, batch, num_pages)
    command = _command(opened, module, inputs)
    script = directory / "run.sh"
    script.write_text(_script(command), encoding="utf-8")
    script.chmod(0o755)
    document = {
        "directory": str(directory),
        "target": module.target,
        "num_tokens": len(batch.token_ids),
        "token_ids": batch.token_ids.tolist(),
        "command": command,
    }
    if as_json:
        print_json(document)
    else:
        click.echo(f"wrote the step of {len(batch.token_ids)} tokens; run it with: sh {script}")


class _Recorder:
    """A StepRunner that keeps the batches it is given, and answers with zeros."""

    def __init__(self, artifact: Artifact) -> None:
        manifest = artifact.manifest
        pages = -(-manifest.limits.max_model_len // manifest.kv.page_size) + 1
        self.batches: list[StepBatch] = []
        self.limits = StepLimits(
            page_size=manifest.kv.page_size,
            num_pages=(pages,) * len(manifest.kv.group_windows),
            group_windows=manifest.kv.group_windows,
            max_model_len=manifest.limits.max_model_len,
            max_num_batched_tokens=manifest.limits.max_num_batched_tokens,
            max_num_seqs=manifest.limits.max_num_seqs,
            vocab_size=manifest.model.vocab_size,
        )

    def step(self, batch: StepBatch) -> F32:
        self.batches.append(batch)
        return np.zeros((len(batch.logit_rows), self.limits.vocab_size), np.float32)

    def step_greedy(self, batch: StepBatch) -> I32:
        self.batches.append(batch)
        return np.zeros(len(batch.logit_rows), np.int32)

    @property
    def top_k(self) -> int:
        return 1

    def step_topk(self, batch: StepBatch) -> TopLogits:
        self.batches.append(batch)
        zeros = np.zeros((len(batch.logit_rows), self.top_k), np.float32)
        weights = np.full(len(zeros), self.limits.vocab_size, np.float32)
        return TopLogits(values=zeros, token_ids=zeros.astype(np.int32), weights=weights)


def first_step(artifact: Artifact, prompt: str, raw: bool) -> tuple[StepBatch, int]:
    """The batch that the engine makes of a prompt, and how many pages a pool needs for it.

    Raises RequestError if the prompt does not fit one step.
    """
    recorder = _Recorder(artifact)
    llm = LLM(recorder, Tokenizer.from_dir(artifact.path))
    request: Any = prompt if raw else llm.render_chat(messages(prompt, None))
    llm.generate(request, SamplingParams(max_tokens=1, temperature=0.0))
    if len(recorder.batches) != 1:
        raise RequestError(
            f"the prompt takes {len(recorder.batches)} steps; it must fit one, of at most "
            f"{recorder.limits.max_num_batched_tokens} tokens"
        )
    batch = recorder.batches[0]
    return batch, int(batch.page_table.max()) + 1


def _write_arguments(
    directory: Path, artifact: Artifact, batch: StepBatch, num_pages: int
) -> list[str]:
    """Write each argument's file; returns what --input takes, in the order of the arguments."""
    inputs = []
    for argument in artifact.manifest.arguments:
        if not argument.name.startswith("kv_"):
            inputs.append(_save(directory, argument.name, getattr(batch, argument.name)))
            continue
        shape = (num_pages, *(int(dim) for dim in argument.dims[1:]))
        if argument.dtype in _NUMPY:
            pages = np.zeros(shape, _NUMPY[argument.dtype])
            inputs.append(_save(directory, argument.name, pages))
        else:
            # numpy has no bf16; iree-run-module fills a tensor with one value itself.
            inputs.append(f"{'x'.join(map(str, shape))}x{argument.dtype}=0")
    return inputs


def _save(directory: Path, name: str, array: NDArray[Any]) -> str:
    # IREE reads no file whose array lies in Fortran's order, as a transposed one does.
    np.save(directory / f"{name}.npy", np.ascontiguousarray(array))
    return f"@{name}.npy"


def _command(artifact: Artifact, module: ModuleEntry, inputs: list[str]) -> list[str]:
    if "step" not in module.entry_points:
        raise OptionError(f"the module of {module.target} has no function step")
    root = os.path.abspath(artifact.path)
    return [
        "iree-run-module",
        f"--module={root}/{module.file}",
        f"--parameters=model={root}/{module.weights}",
        f"--device={module.driver}",
        "--function=step",
        *(f"--input={text}" for text in inputs),
        "--output=@logits.npy",
    ]


def _script(command: list[str]) -> str:
    lines = " \\\n  ".join(shlex.quote(word) for word in command)
    return f'#!/bin/sh\n# Written by llmir export-inputs.\ncd "$(dirname "$0")" || exit\n{lines}\n'
