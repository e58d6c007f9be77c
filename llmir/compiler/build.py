"""compile: a model in, an artifact out.  The stages, in order, are in `compile_model`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iree.compiler import ir

import llmir
from llmir import artifact
from llmir.artifact import (
    Artifact,
    KvLayout,
    Limits,
    Manifest,
    ModuleEntry,
    ProviderUse,
    StepCall,
    StoredParameter,
)
from llmir.artifact_writer import writing
from llmir.compiler import iree_compile
from llmir.compiler.activations import parse_activations
from llmir.compiler.executables import vulkan_features
from llmir.compiler.export import export_step, kv_layout, step_arguments
from llmir.compiler.in_place import check_in_place
from llmir.compiler.options import DEFAULT_MAX_MODEL_LEN, CompileOptions
from llmir.compiler.step_calls import step_calls
from llmir.compiler.versions import check_tools, tool_versions
from llmir.compiler.weights import StoredWeights, write_archive
from llmir.config import ModelSpec
from llmir.cpu_levels import takes_objects
from llmir.dialect_ext.registry import find_lowering, parse_priority
from llmir.errors import OptionError
from llmir.host import is_amx
from llmir.importers.base import ImportedModel
from llmir.models.rope import check_max_len
from llmir.passes.add_topk_entry import AddTopkEntry
from llmir.passes.entries import functions_of
from llmir.passes.ir import is_llm_op, parse_module, text_attribute, walk
from llmir.passes.manager import PassManager
from llmir.passes.parameters import PackedParameter, take_recipes
from llmir.passes.pipelines import FUSIONS, SHARED_DISPATCHES, TO_LLM_IR
from llmir.passes.select_providers import SelectProviders
from llmir.targets import Target

StageHook = Callable[[str], AbstractContextManager[Any]]
"""Called with the name of each long stage; what it returns is entered while the stage runs."""


@dataclass(slots=True)
class _Clock:
    """Runs stages under the caller's hook and remembers how long each took."""

    hook: StageHook
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with self.hook(name):
            yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def compile_model(
    model: ImportedModel,
    targets: Sequence[Target],
    output: Path,
    options: CompileOptions,
    *,
    key: str = "",
    on_stage: StageHook = lambda name: nullcontext(),
    print_ir_after: Sequence[str] = (),
) -> Artifact:
    """Compile an imported model for one or more targets into an artifact at `output`.

    The caller holds `artifact_writer.locked(output)`.

    Args:
        key: the cache key that the manifest names, see options.cache_key.
        print_ir_after: names of passes after which to print the IR to stderr.
    Raises: CompileError and its subclasses, OptionError, OSError if the disk is full;
    nothing stands at `output` then but what stood there before.
    """
    check_tools()
    priority = parse_priority(options.op_priority)
    limits = _limits(model.spec, options)
    kv = kv_layout(model.spec, options.kv_dtype_for(targets), options.page_size)
    clock = _Clock(on_stage)
    manager = PassManager(print_ir_after=tuple(print_ir_after))
    with writing(output) as directory:
        with clock.stage("quantising weights"):
            activations = parse_activations(options.activations)
            weights = StoredWeights(model, options.weights, activations, limits.max_model_len)
        with clock.stage("tracing the model"):
            exported = export_step(model.spec, weights.form_of, kv, limits)
            llm_ir = _to_llm_ir(exported, manager)
        smallest = min(t.num_bytes for t in weights.report() if len(t.shape) == 2)
        modules = []
        archives = _Archives(directory, weights)
        for target in targets:
            with clock.stage(f"lowering for {target.name}"):
                lowered = _lower(llm_ir, target, options.fusion, priority, manager, kv)
            with clock.stage(f"compiling for {target.name}"):
                archive = archives.name_for(lowered)
                modules.append(_compile(lowered, target, directory, kv, smallest, archive))
        with clock.stage("writing weights"):
            parameters = archives.write()
        _write_tokenizer(directory, model)
        manifest = Manifest(
            llmir_version=llmir.__version__,
            cache_key=key,
            source=model.source,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=model.spec,
            options=options.to_json(),
            kv=kv,
            limits=limits,
            arguments=step_arguments(kv),
            modules=tuple(modules),
            tensors=weights.report(),
            tools=tool_versions(),
            compile_seconds=clock.seconds,
            parameters=parameters,
        )
        manifest = artifact.write_manifest(directory, manifest)
    return Artifact(output.absolute(), manifest)


def _limits(spec: ModelSpec, options: CompileOptions) -> Limits:
    native = spec.max_position_embeddings
    wanted = options.max_model_len or min(native, DEFAULT_MAX_MODEL_LEN)
    check_max_len(spec, wanted)
    if wanted > native:
        raise OptionError(
            f"max_model_len {wanted} is beyond the {native} positions that {spec.name} has"
        )
    return Limits(
        max_model_len=wanted,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_num_seqs=options.num_seqs,
    )


@dataclass(frozen=True, slots=True)
class _Lowered:
    """A module that IREE can compile, what made it, and the flags that its lowerings need."""

    mlir: str
    providers: tuple[ProviderUse, ...]
    flags: tuple[str, ...]
    plain: tuple[str, ...]
    packed: tuple[PackedParameter, ...]
    calls: tuple[StepCall, ...]
    entry_points: tuple[str, ...]


@dataclass(slots=True)
class _Archives:
    """The weights files of an artifact: one for each set of parameters that a target reads."""

    directory: Path
    weights: StoredWeights
    names: dict[tuple[tuple[str, ...], tuple[PackedParameter, ...]], str] = field(
        default_factory=dict
    )

    def name_for(self, lowered: _Lowered) -> str:
        """The file with the parameters of a module."""
        key = (lowered.plain, lowered.packed)
        if key not in self.names:
            kind = "packed" if lowered.packed else "portable"
            same = sum(f".{kind}" in name for name in self.names.values())
            self.names[key] = f"weights.{kind}{f'-{same + 1}' if same else ''}.irpa"
        return self.names[key]

    def write(self) -> dict[str, tuple[StoredParameter, ...]]:
        """Write all; returns what each holds."""
        return {
            name: write_archive(self.directory / name, self.weights.parameters(set(plain), packed))
            for (plain, packed), name in self.names.items()
        }


def _to_llm_ir(exported: str, manager: PassManager) -> str:
    """What all targets share, once for all of them."""
    module = parse_module(exported)
    manager.run(module, TO_LLM_IR)
    return str(module)


def _lower(
    llm_ir: str,
    target: Target,
    fusion: str,
    priority: dict[str, list[str]],
    manager: PassManager,
    kv: KvLayout,
) -> _Lowered:
    module = parse_module(llm_ir)
    manager.run(module, [SelectProviders(target=target.name, priority=priority)])
    if fusion != "none":
        manager.run(module, [AddTopkEntry(target=target.name, priority=priority)])
    manager.run(module, FUSIONS[fusion])
    providers = _provider_uses(module)
    flags = _flags(providers, target)
    calls = step_calls(module, step_arguments(kv))
    manager.run(module, SHARED_DISPATCHES[fusion])
    manager.run(module, ["lower-llm"])
    plain, packed = take_recipes(module)
    entry_points = tuple(f for f in functions_of(module) if not f.endswith("$async"))
    return _Lowered(str(module), providers, flags, plain, packed, calls, entry_points)


_NOTES = ("provider", "variant", "refused")


def _provider_uses(module: ir.Module) -> tuple[ProviderUse, ...]:
    # The entry points do the same but at their ends: an op of both is counted once.
    counted: Counter[tuple[str, ...]] = Counter()
    for function in module.body.operations:
        counted |= Counter(
            (
                operation.name.removeprefix("llm."),
                *(text_attribute(operation, f"llm.{x}") for x in _NOTES),
            )
            for operation in walk(function.operation)
            if is_llm_op(operation)
        )
    return tuple(
        ProviderUse(op=op, provider=provider, variant=variant, count=count, refused=refused)
        for (op, provider, variant, refused), count in sorted(counted.items())
    )


def _flags(providers: Sequence[ProviderUse], target: Target) -> tuple[str, ...]:
    """The target's flags and those that the chosen lowerings ask for, each once."""
    flags = list(target.flags)
    for use in providers:
        flags += find_lowering(use.op, use.provider, use.variant).flags(target)
    return tuple(dict.fromkeys(flags))


def _compile(
    lowered: _Lowered,
    target: Target,
    directory: Path,
    kv: KvLayout,
    smallest_matrix_bytes: int,
    archive: str,
) -> ModuleEntry:
    stream = iree_compile.to_stream(lowered.mlir, lowered.flags)
    check_in_place(stream, kv, smallest_matrix_bytes)
    file = f"model.{target.slug}.vmfb"
    iree_compile.to_module(stream, lowered.flags, directory / file)
    code = iree_compile.cpu_code(stream) if target.is_cpu else None
    return ModuleEntry(
        target=target.name,
        file=file,
        weights=archive,
        flags=lowered.flags,
        driver=target.driver,
        entry_points=lowered.entry_points,
        providers=lowered.providers,
        calls=lowered.calls,
        cpu=code.name if code else "",
        cpu_arch=code.arch if code else "",
        cpu_features=_cpu_features(code.features, lowered.flags, target) if code else (),
        needs=vulkan_features(directory / file) if target.kind == "vulkan" else (),
    )


def _cpu_features(
    generated: Sequence[str], flags: Sequence[str], target: Target
) -> tuple[str, ...]:
    """What a CPU must have for IREE's code, and for the C kernels if any were linked in.

    IREE's code uses no AMX, even where its CPU has it; kernels may.
    """
    features = [f for f in generated if not is_amx(f)]
    if target.isa_level is not None and takes_objects(flags):
        features += target.isa_level.features
    return tuple(dict.fromkeys(features))


def _write_tokenizer(directory: Path, model: ImportedModel) -> None:
    """The files that AutoTokenizer and AutoConfig read."""
    config = {
        "model_type": model.spec.architecture,
        "vocab_size": model.spec.vocab_size,
        "max_position_embeddings": model.spec.max_position_embeddings,
    }
    _write_json(directory / "config.json", config)
    if model.tokenizer is None:
        return
    (directory / "tokenizer.json").write_text(model.tokenizer.tokenizer_json, encoding="utf-8")
    _write_json(directory / "tokenizer_config.json", dict(model.tokenizer.tokenizer_config))
    _write_json(directory / "generation_config.json", dict(model.tokenizer.generation_config))


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
