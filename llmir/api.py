"""What joins the two towers: a model becomes an artifact, an artifact an engine.

`compiler` is imported only when something has to be compiled: with an artifact,
or a model that was compiled before, neither torch nor the compiler is loaded.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from llmir import artifact as artifacts
from llmir import engine
from llmir.artifact import Artifact
from llmir.artifact_writer import locked
from llmir.compiler.options import CompileOptions, cache_key, make_options, option_names
from llmir.config import Settings
from llmir.engine.from_artifact import Opened, open_artifact
from llmir.engine.ngram import NgramConfig, parse_speculation
from llmir.engine.scheduler_config import DEFAULT_MAX_OVERTAKES, SchedulerConfig
from llmir.errors import ArtifactError, OptionError
from llmir.importers.files import model_files
from llmir.importers.hub import resolve_model
from llmir.targets import Target, kind_of_device, resolve

PREFILL_PER_DECODE = 6.0
"""Of AsyncLLM.  Between 4 and 8 a server of two Zen 3 cores answered 10 % more tokens a second
than with 2, as many as without a bound; tokens came every 130 ms beside long prompts."""

StageHook = Callable[[str], AbstractContextManager[Any]]


def compile(
    model: str | Path,
    target: str | Sequence[str] = "cpu",
    output: str | Path | None = None,
    *,
    on_stage: StageHook = lambda name: nullcontext(),
    print_ir_after: Sequence[str] = (),
    **options: Any,
) -> Artifact:
    """Compile a model into an artifact.

    Args:
        model: a GGUF file, a Hugging Face directory, or a hub id.
        target: one or more target names, see `llmir targets`.
        output: the artifact's directory; None: in the cache directory (LLMIR_CACHE).
            An artifact that stands there is replaced, unless it is of the same inputs.
        on_stage: called with the name of each long stage; the context manager it
            returns is entered while the stage runs.
        print_ir_after: passes after which to print the IR to stderr.
        options: weights, kv_dtype, activations, page_size, max_model_len,
            max_num_batched_tokens, max_num_seqs, fusion, op_priority; see
            compiler.options.CompileOptions.

    The same inputs give the same artifact: a second call finds the first one's.

    Raises: ModelError, CompileError, OptionError, UnknownNameError, OSError; after an
    error nothing new stands at `output`.
    """
    compile_options = make_options(options)
    names = [target] if isinstance(target, str) else list(target or ())
    targets = [resolve(n) for n in dict.fromkeys(names)]
    if not targets:
        raise OptionError("compile needs at least one target; see `llmir targets`")
    settings = Settings.from_env()
    with on_stage("finding the model"):  # which may download it
        path = resolve_model(model, offline=settings.hub_offline)
    with on_stage("looking in the cache"):  # which reads the whole model the first time
        key = cache_key(model_files(path), [t.name for t in targets], compile_options)
    place = (
        settings.cache_dir / "artifacts" / key if output is None else Path(os.path.abspath(output))
    )
    if not print_ir_after and (found := _same(place, key)) is not None:
        return found
    with locked(place):
        # Another process may have compiled the same while this one waited.
        if not print_ir_after and (found := _same(place, key)) is not None:
            return found
        return _compile(path, targets, place, key, compile_options, on_stage, print_ir_after)


def _same(place: Path, key: str) -> Artifact | None:
    """The artifact at `place` if it has this key and is whole."""
    if not artifacts.is_artifact(place):
        return None
    try:
        found = artifacts.load(place)
    except ArtifactError:
        return None  # damaged or of another version: compiled again
    return found if found.manifest.cache_key == key else None


def _compile(
    path: Path,
    targets: Sequence[Target],
    place: Path,
    key: str,
    options: CompileOptions,
    on_stage: StageHook,
    print_ir_after: Sequence[str],
) -> Artifact:
    from llmir.compiler.versions import check_tools

    check_tools()
    with on_stage("loading the compiler"):
        from llmir.compiler.build import compile_model
    from llmir.importers import import_model

    with on_stage("reading the model"):
        model = import_model(path)
    return compile_model(
        model,
        targets,
        place,
        options,
        key=key,
        on_stage=on_stage,
        print_ir_after=print_ir_after,
    )


def load(path: str | Path, *, verify_weights: str = "first") -> Artifact:
    """Open an artifact, checking its files against its manifest; see artifact.load."""
    return artifacts.load(path, verify_weights=verify_weights)


class LLM(engine.LLM):
    """A model that answers prompts: `LLM(model_or_artifact).generate(prompts, params)`.

    Args:
        model: an artifact's directory or an Artifact; or a model, as `compile` takes it,
            which is compiled once into the cache directory.
        target: what to compile a model for; None: what `device` needs, or the CPU.
        device: a device URI ("local-task", "vulkan://0", "cuda://0"); None: the best device
            of this machine that the artifact has a module for, see runtime.choice.
        kv_cache_memory_bytes: memory for the KV cache; None: up to 1 GiB.
        device_memory_fraction: in its place, the share of the device's memory that weights,
            steps and KV cache may take together.
        num_threads: CPU worker threads; None: one per physical core.
        max_num_seqs, max_num_batched_tokens: most sequences and tokens in a step, within
            what the artifact was compiled for.
        enable_prefix_caching: prompts that begin alike share the KV pages of what they share,
            now and later; off, each is computed anew.  Answers are the same.
        scheduling_policy, max_overtakes, admission, max_prefill_per_decode: who is served first,
            and how many at a time; see engine.scheduler_config.SchedulerConfig.  Answers are the
            same.
        speculative_config: {"method": "ngram"} and the fields of engine.ngram.NgramConfig: tokens
            that followed the last ones before are verified several in one step.  Greedy answers
            are the same; None: no speculation.
        verify_weights: "first", "always" or "never", see artifact.load.
        on_stage: as in `compile`.
        options: for a model: further options of `compile`.

    Raises: as `compile` and `load`; ArtifactTargetError, DeviceError, OptionError.
    """

    def __init__(
        self,
        model: str | Path | Artifact,
        *,
        target: str | None = None,
        device: str | None = None,
        kv_cache_memory_bytes: int | None = None,
        device_memory_fraction: float | None = None,
        num_threads: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        enable_prefix_caching: bool = True,
        scheduling_policy: str = "fcfs",
        max_overtakes: int = DEFAULT_MAX_OVERTAKES,
        admission: str = "max_utilization",
        max_prefill_per_decode: float | None = None,
        speculative_config: Mapping[str, Any] | None = None,
        verify_weights: str = "first",
        on_stage: StageHook = lambda name: nullcontext(),
        **options: Any,
    ) -> None:
        self.artifact, opened, config, speculation = _open(
            model,
            target=target,
            device=device,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            device_memory_fraction=device_memory_fraction,
            num_threads=num_threads,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
            scheduling_policy=scheduling_policy,
            max_overtakes=max_overtakes,
            admission=admission,
            max_prefill_per_decode=max_prefill_per_decode,
            speculative_config=speculative_config,
            verify_weights=verify_weights,
            on_stage=on_stage,
            **options,
        )
        super().__init__(
            opened.runner,
            opened.tokenizer,
            generation_config=opened.generation_config,
            config=config,
            speculation=speculation,
        )


class AsyncLLM(engine.AsyncLLM):
    """The same for asyncio: `async for output in AsyncLLM(model).generate(…, request_id="1")`.

    Args and Raises: as `LLM`; but max_prefill_per_decode is 6 unless given, for somebody waits for
    every token.
    """

    def __init__(self, model: str | Path | Artifact, **options: Any) -> None:
        options.setdefault("max_prefill_per_decode", PREFILL_PER_DECODE)
        self.artifact, opened, config, speculation = _open(model, **options)
        super().__init__(
            opened.runner,
            opened.tokenizer,
            generation_config=opened.generation_config,
            config=config,
            speculation=speculation,
        )


def _open(
    model: str | Path | Artifact,
    *,
    target: str | None = None,
    device: str | None = None,
    kv_cache_memory_bytes: int | None = None,
    device_memory_fraction: float | None = None,
    num_threads: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    enable_prefix_caching: bool = True,
    scheduling_policy: str = "fcfs",
    max_overtakes: int = DEFAULT_MAX_OVERTAKES,
    admission: str = "max_utilization",
    max_prefill_per_decode: float | None = None,
    speculative_config: Mapping[str, Any] | None = None,
    verify_weights: str = "first",
    on_stage: StageHook = lambda name: nullcontext(),
    **options: Any,
) -> tuple[Artifact, Opened, SchedulerConfig, NgramConfig | None]:
    """What an engine is made of, from the arguments of `LLM`."""
    speculation = None if speculative_config is None else parse_speculation(speculative_config)
    sizes = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    artifact = _artifact_of(model, target, device, verify_weights, on_stage, options, sizes)
    opened = open_artifact(
        artifact,
        device=device,
        kv_cache_memory_bytes=kv_cache_memory_bytes,
        device_memory_fraction=device_memory_fraction,
        num_threads=num_threads,
    )
    config = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        enable_prefix_caching=enable_prefix_caching,
        scheduling_policy=scheduling_policy,
        max_overtakes=max_overtakes,
        admission=admission,
        max_prefill_per_decode=max_prefill_per_decode,
    )
    return artifact, opened, config, speculation


def _artifact_of(
    model: str | Path | Artifact,
    target: str | None,
    device: str | None,
    verify_weights: str,
    on_stage: StageHook,
    options: dict[str, Any],
    sizes: dict[str, int | None],
) -> Artifact:
    """What `LLM` was given, as an artifact.

    sizes: what the engine will be limited to; a model is compiled for more than the
    default where they ask for more.
    """
    for name in options:
        if name not in option_names():
            known = [*inspect.signature(LLM).parameters][:-1] + list(option_names())
            raise OptionError(f"LLM has no option {name!r}; it has: {', '.join(known)}")
    artifacts.check_verify_weights(verify_weights)
    place = model.path if isinstance(model, Artifact) else model
    if isinstance(model, Artifact) or artifacts.is_artifact(model):
        fixed = [*options, *(["target"] if target is not None else [])]
        if fixed:
            raise OptionError(
                f"{', '.join(fixed)}: fixed when an artifact is compiled; {place} is one already"
            )
    else:
        defaults = CompileOptions().to_json()
        larger = {n: v for n, v in sizes.items() if isinstance(v, int) and v > defaults[n]}
        options = {**options, **larger}
        target = target or ("cpu" if device is None else kind_of_device(device))
        place = compile(model, target, on_stage=on_stage, **options).path
    with on_stage("checking the artifact"):
        return artifacts.load(place, verify_weights=verify_weights)
