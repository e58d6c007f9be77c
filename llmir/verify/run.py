"""`llmir verify` from what was asked to a `Certificate`."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmir.artifact import Artifact
from llmir.bench.measure import RunOptions
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import LlmirError, OptionError
from llmir.runtime.choice import choose_module
from llmir.runtime.devices import same_device
from llmir.verify.compare import Pair, PairResult, StageHook, compare
from llmir.verify.latency import Times, compile_hook, compile_times, op_times, step_times
from llmir.verify.ops import OpRow, check_lists_ops, check_ops, check_tools
from llmir.verify.prompts import VerifyPrompt, built_in_prompts, read_prompts
from llmir.verify.sides import DeviceOptions, SidePlan, device_plan, is_cpu
from llmir.verify.transformers_side import transformers_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What was asked.

    devices:       URIs; empty: the driver of the module that this machine runs first
    against:       another artifact, which is then the reference on each device
    transformers:  whether the model's own file in float32 is a reference too
    thresholds:    fields of Thresholds, None for the defaults
    ops:           run ops alone: True, False, or None: where a pair fails
    latency:       with `against`, time steps and ops
    """

    devices: tuple[str, ...] = ()
    against: Artifact | None = None
    transformers: bool = False
    reference_model: Path | None = None
    prompts_file: Path | None = None
    built_in: tuple[str, ...] = ()
    max_tokens: int = 24
    thresholds: dict[str, float | None] = field(default_factory=dict)
    ops: bool | None = None
    latency: bool = True
    num_threads: int | None = None
    kv_cache_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """All that was found.

    ops:          of each device, the ops alone, worst first; None where they were not run
    notes:        what could not be looked at, and why
    times:        with `against`, by heading
    ops_missing:  devices whose ops were asked for and could not all be run
    """

    artifact: Artifact
    options: VerifyOptions
    sides: list[SidePlan]
    prompts: list[VerifyPrompt]
    pairs: list[PairResult]
    ops: list[OpRow] | None
    times: dict[str, list[Times]]
    notes: list[str]
    ops_missing: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every pair agrees, no op is wrong alone, and what was asked for was run."""
        ops_sound = not any(row.is_wrong for row in self.ops or ())
        return all(pair.passed for pair in self.pairs) and ops_sound and not self.ops_missing


def verify(artifact: Artifact, options: VerifyOptions, on_stage: StageHook) -> Certificate:
    """Compare, and where that fails look for the op at fault.

    Raises, before anything runs: ArtifactTargetError, DeviceError for a device; OptionError if
    there is nothing to compare, and for what cannot be done; RequestError for a prompt; where ops
    are asked for, ToolVersionError without the compile tools and ArtifactVersionError if the
    artifact lists none.
    """
    devices = options.devices or (choose_module(artifact, None).driver,)
    prompts = _prompts(artifact, options)
    plans, pairs = _sides(artifact, devices, options, prompts)
    for one, other in itertools.combinations(devices, 2):
        if same_device(one, other):
            raise OptionError(f"{one!r} and {other!r} are the same device; give it once")
    if not pairs:
        raise OptionError(
            f"there is one side alone, {plans[0].name}: give a second device, --against ARTIFACT "
            "or --reference transformers"
        )
    if options.ops:
        check_tools()
        for device in devices:
            check_lists_ops(choose_module(artifact, device))
    with tempfile.TemporaryDirectory(prefix="llmir-") as directory:
        scratch = Path(directory)
        results = compare(
            plans, pairs, prompts, options.max_tokens, options.thresholds, scratch, on_stage
        )
        notes: list[str] = []
        wanted = options.ops or (options.ops is None and not all(r.passed for r in results))
        ops, missing = (
            _ops(artifact, devices, options, scratch, notes, on_stage) if wanted else (None, ())
        )
        times = _times(artifact, devices, options, scratch, notes, on_stage)
    return Certificate(
        artifact=artifact,
        options=options,
        sides=plans,
        prompts=prompts,
        pairs=results,
        ops=ops,
        times=times,
        notes=notes,
        ops_missing=missing if options.ops else (),
    )


def _prompts(artifact: Artifact, options: VerifyOptions) -> list[VerifyPrompt]:
    manifest = artifact.manifest
    has_tokenizer = artifact.file("tokenizer.json").is_file()
    tokenizer = Tokenizer.from_dir(artifact.path) if has_tokenizer else None
    most = manifest.limits.max_model_len
    if options.against is not None:
        other = options.against.manifest
        if other.model.vocab_size != manifest.model.vocab_size:
            raise OptionError(
                f"the artifacts are not of one model: vocabularies of {manifest.model.vocab_size} "
                f"and {other.model.vocab_size} tokens"
            )
        most = min(most, other.limits.max_model_len)
    most -= options.max_tokens
    if options.prompts_file is not None:
        return read_prompts(options.prompts_file, tokenizer, most)
    return built_in_prompts(tokenizer, manifest.model.vocab_size, most, options.built_in)


def _sides(
    artifact: Artifact,
    devices: Sequence[str],
    options: VerifyOptions,
    prompts: Sequence[VerifyPrompt],
) -> tuple[list[SidePlan], list[Pair]]:
    """References first; every device is compared with them and with the first device."""

    def plan(which: Artifact, device: str, name: str = "") -> SidePlan:
        kv_bytes = options.kv_cache_bytes or _kv_bytes(which, prompts, options.max_tokens)
        run = DeviceOptions(num_threads=options.num_threads, kv_cache_bytes=kv_bytes)
        return device_plan(which, device, run, name=name)

    plans: list[SidePlan] = []
    pairs: list[Pair] = []
    if options.transformers:
        plans.append(transformers_plan(options.reference_model))
    if options.against is not None:
        for device in devices:
            plans += [plan(options.against, device, f"{device} before"), plan(artifact, device)]
            pairs.append(Pair(len(plans) - 2, len(plans) - 1))
    else:
        first = len(plans)
        plans += [plan(artifact, device) for device in devices]
        pairs += [Pair(first, other) for other in range(first + 1, len(plans))]
    if options.transformers:
        pairs = [*(Pair(0, other) for other in range(1, len(plans))), *pairs]
    return plans, pairs


def _kv_bytes(artifact: Artifact, prompts: Sequence[VerifyPrompt], max_tokens: int) -> int:
    """Pages for all prompts and answers at once, up to what a step may have of sequences."""
    kv, limits = artifact.manifest.kv, artifact.manifest.limits
    lengths = sorted(len(p.token_ids) + max_tokens for p in prompts)[-limits.max_num_seqs :]
    pages = 2 + sum(-(-length // kv.page_size) for length in lengths)
    return pages * kv.page_bytes * len(kv.group_of_layer)


def _ops(
    artifact: Artifact,
    devices: Sequence[str],
    options: VerifyOptions,
    scratch: Path,
    notes: list[str],
    on_stage: StageHook,
) -> tuple[list[OpRow] | None, tuple[str, ...]]:
    """The rows, and the devices that failed before all of theirs: the comparison is not lost."""
    rows: list[OpRow] = []
    missing = []
    for device in devices:
        with on_stage(f"running the ops on {device}"):
            try:
                threads = options.num_threads if is_cpu(device) else None
                for row in check_ops(device, artifact, device, threads, scratch):
                    rows.append(row)
            except LlmirError as error:
                missing.append(device)
                notes.append(f"The ops could not all be run alone on {device}: {error}")
    return sorted(rows, key=lambda row: -row.error / row.limit) or None, tuple(missing)


def _times(
    artifact: Artifact,
    devices: Sequence[str],
    options: VerifyOptions,
    scratch: Path,
    notes: list[str],
    on_stage: StageHook,
) -> dict[str, list[Times]]:
    before = options.against
    if before is None:
        return {}
    found = {"Compile time": compile_times(before, artifact)}
    for device in devices if options.latency else ():
        run = RunOptions(
            device=device,
            num_threads=options.num_threads if is_cpu(device) else None,
            kv_cache_memory_bytes=options.kv_cache_bytes,
        )
        try:
            found[f"Steps on {device}"] = step_times(before, artifact, device, run, on_stage)
            pair = (before, artifact)
            rows = op_times(pair, run, scratch, compile_hook, on_stage)
            found[f"Ops of a decode on {device}, each alone"] = rows
        except LlmirError as error:
            notes.append(f"The steps or ops could not be timed on {device}: {error}")
    return found
