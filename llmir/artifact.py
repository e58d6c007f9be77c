"""The artifact: a directory that holds all that serving needs to know of a model.

    manifest.json          this module's `Manifest`; written last
    model.<target>.vmfb    one module per target
    weights.<layout>.irpa  one parameter archive per weight layout
    tokenizer.json, tokenizer_config.json, generation_config.json, config.json

artifact_writer writes it whole or not at all.  The two towers of llmir meet here
and nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmir.config import ModelSpec
from llmir.digests import DigestMemo, sha256_of
from llmir.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    ArtifactVersionError,
    OptionError,
    UnknownNameError,
)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
VERIFY_WEIGHTS = ("first", "always", "never")
# KV dtype → element type and its bytes.
KV_ELEMENTS = {
    "f32": ("f32", 4),
    "f16": ("f16", 2),
    "bf16": ("bf16", 2),
    "int8": ("i8", 1),
    "fp8": ("i8", 1),
}
KV_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """How the KV cache lies in memory.

    One tensor per layer, [pages, 2, num_kv_heads, page_size, row]; index 0
    of dim 1 is K, 1 is V; a row is head_dim numbers, of int8 with the bytes of a
    float32 scale after them.  Layers of one group share page tables and have as
    many pages.

    dtype:            one of KV_ELEMENTS
    group_windows:    sliding window of each group in tokens, None for full attention
    group_of_layer:   index of each layer's group
    """

    dtype: str
    page_size: int
    num_kv_heads: int
    head_dim: int
    group_windows: tuple[int | None, ...]
    group_of_layer: tuple[int, ...]

    @property
    def element(self) -> str:
        """The element type of the tensors."""
        return KV_ELEMENTS[self.dtype][0]

    @property
    def page_shape(self) -> tuple[int, int, int, int]:
        """The dims of a layer's tensor after that of the pages."""
        row = self.head_dim + (KV_SCALE_BYTES if self.dtype == "int8" else 0)
        return (2, self.num_kv_heads, self.page_size, row)

    @property
    def page_bytes(self) -> int:
        """Of one page of one layer."""
        return math.prod(self.page_shape) * KV_ELEMENTS[self.dtype][1]

    @property
    def token_bytes(self) -> int:
        """K and V of one token in one layer."""
        return self.page_bytes // self.page_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the modules were compiled for; the engine keeps to it."""

    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderUse:
    """How often an op was lowered by one provider in a module, and what was refused first."""

    op: str
    provider: str
    variant: str
    count: int
    refused: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOperand:
    """An operand of a StepCall.

    kind:  "parameter", "argument" of the step, or "activations"
    dims:  numbers; of activations a dynamic one is "T", "L" (rows of logits) or a multiple,
           "T*9"; "?" elsewhere
    """

    name: str
    kind: str
    dtype: str
    dims: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCall:
    """An llm op of `step_greedy` after fusion, with all that is static about it.

    label:     what it is in the model: "qkv", "attention", …
    operands:  those that are there, in the order of the op's signature
    sources:   for each time that it occurs, where each operand comes from: the name of a
               parameter or of an argument of the step; "" for activations
    """

    op: str
    label: str
    provider: str
    variant: str
    attrs: Mapping[str, int | float | bool | str]
    operands: tuple[CallOperand, ...]
    sources: tuple[tuple[str, ...], ...]

    @property
    def count(self) -> int:
        """How often it occurs in a step."""
        return len(self.sources)

    @property
    def rotated(self) -> tuple[str, ...]:
        """The operands that each layer has its own of: weights and KV pages."""
        return tuple(
            operand.name
            for operand, names in zip(self.operands, zip(*self.sources, strict=True), strict=True)
            if operand.name == "kv"
            or (operand.kind == "parameter" and (len(set(names)) > 1 or self.count == 1))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleEntry:
    """One compiled module.

    target:        the canonical target name
    file:          the .vmfb
    weights:       the .irpa that it reads
    flags:         what iree-compile was called with
    driver:        the IREE HAL driver that runs it
    cpu:           CPU targets: what `host` meant, LLVM's name of the CPU
    cpu_arch:      CPU targets: "x86_64" or "aarch64"
    cpu_features:  CPU targets: LLVM's feature names that the code may use
    needs:         Vulkan targets: the features that a device must have, by Vulkan's names
    entry_points:  exported functions
    calls:         the llm ops of a step; empty in artifacts from before they were recorded
    """

    target: str
    file: str
    weights: str
    flags: tuple[str, ...]
    driver: str
    entry_points: tuple[str, ...]
    providers: tuple[ProviderUse, ...]
    cpu: str = ""
    cpu_arch: str = ""
    cpu_features: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    calls: tuple[StepCall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor of the model: its format in the source, and in the portable layout."""

    name: str
    shape: tuple[int, ...]
    source_format: str
    stored_as: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredParameter:
    """A parameter of a weights file, as the modules read it.

    stored_as:  a packed format, a layout of planes, or a dtype
    sources:    the model's tensors that it is made of; none of the RoPE table
    """

    name: str
    stored_as: str
    num_bytes: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Size and checksum of one file of the artifact."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepArgument:
    """One argument of `step`: name, dtype, dims (a number, or the name of a dynamic size)."""

    name: str
    dtype: str
    dims: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that manifest.json says.

    parameters:  of each weights file; empty in artifacts from before they were recorded
    """

    llmir_version: str
    cache_key: str
    source: str
    created: str
    model: ModelSpec
    options: Mapping[str, Any]
    kv: KvLayout
    limits: Limits
    arguments: tuple[StepArgument, ...]
    modules: tuple[ModuleEntry, ...]
    tensors: tuple[StoredTensor, ...]
    tools: Mapping[str, str]
    compile_seconds: Mapping[str, float]
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    parameters: Mapping[str, tuple[StoredParameter, ...]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def module_for(self, target: str) -> ModuleEntry:
        """The module of a target.  Raises UnknownNameError listing those there are."""
        for entry in self.modules:
            if entry.target == target:
                return entry
        raise UnknownNameError("target in this artifact", target, (m.target for m in self.modules))

    def parameters_of(self, module: ModuleEntry) -> tuple[StoredParameter, ...]:
        """What the weights file of a module holds.

        Raises ArtifactVersionError if the artifact is from before that was recorded.
        """
        if module.weights not in self.parameters:
            raise ArtifactVersionError(
                f"the artifact of {self.model.name} says nothing of the sizes in "
                f"{module.weights}: llmir {self.llmir_version} made it; compile the model again"
            )
        return self.parameters[module.weights]


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact on disk: its directory and its manifest, verified."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of one of its files."""
        return self.path / name

    @property
    def num_weight_bytes(self) -> int:
        """Bytes of all weight archives."""
        return sum(e.num_bytes for n, e in self.manifest.files.items() if n.endswith(".irpa"))


def load(
    path: str | Path, *, verify_weights: str = "first", memo: DigestMemo | None = None
) -> Artifact:
    """Open an artifact and check its files against the manifest.

    Modules and tokenizer files are hashed at every load; the weights as
    `verify_weights` says: "first" hashes them once per machine and remembers the
    result by size, mtime_ns and inode in the cache directory, "always", "never".

    Raises: ArtifactNotFoundError, ArtifactVersionError, ArtifactCorruptError,
    OptionError for another `verify_weights`.
    """
    check_verify_weights(verify_weights)
    root = Path(os.path.abspath(path))  # an artifact stays itself when the process moves
    manifest = read_manifest(root)
    for name, entry in manifest.files.items():
        check_file(root, name, entry, verify_weights, memo or DigestMemo.default())
    return Artifact(root, manifest)


def check_verify_weights(value: str) -> None:
    """Raise OptionError unless `value` is one of VERIFY_WEIGHTS."""
    if value not in VERIFY_WEIGHTS:
        raise OptionError(
            f"verify_weights must be one of {', '.join(VERIFY_WEIGHTS)}; got {value!r}"
        )


def is_artifact(path: str | Path) -> bool:
    """Whether `path` is a directory of ours, be it a damaged one.

    Other programs have a manifest.json too.  Ours names its format version; one that
    cannot be read at all counts as ours if there are compiled modules beside it.
    """
    root = Path(path)
    if not (root / MANIFEST).is_file():
        return False
    try:
        data = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return any(root.glob("*.vmfb"))
    return isinstance(data, dict) and {"format_version", "modules", "files"} <= data.keys()


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Hash every file in `directory`, write manifest.json last; returns it with `files` set."""
    files = {
        p.name: FileEntry(num_bytes=p.stat().st_size, sha256=sha256_of(p))
        for p in sorted(directory.iterdir())
        if p.name != MANIFEST
    }
    manifest = dataclasses.replace(manifest, files=files)
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def read_manifest(root: Path) -> Manifest:
    """What the manifest of an artifact says; its files are not looked at.

    Raises: ArtifactNotFoundError, ArtifactVersionError, ArtifactCorruptError.
    """
    if not (root / MANIFEST).is_file():
        if root.is_file():
            raise ArtifactNotFoundError(
                f"no artifact at {root}: it is a file, and an artifact is the directory that a "
                f"model is compiled into; make one: llmir compile {root} -o {root.stem}.llmir"
            )
        what = "is not a directory" if not root.is_dir() else f"holds no {MANIFEST}"
        raise ArtifactNotFoundError(f"no artifact at {root}: it {what}; make one: llmir compile")
    try:
        data = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        version = int(data["format_version"])
        if version > FORMAT_VERSION:
            raise ArtifactVersionError(
                f"{root} has format version {version}; this llmir reads up to {FORMAT_VERSION}: "
                "upgrade llmir, or compile the model again"
            )
        return _manifest_from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactCorruptError(
            f"{root / MANIFEST} is not a valid manifest ({error}); compile the model again"
        ) from error


def _manifest_from_json(data: dict[str, Any]) -> Manifest:
    def call(entry: dict[str, Any]) -> StepCall:
        operands = tuple(CallOperand(**_tuples(o)) for o in entry.pop("operands"))
        sources = tuple(tuple(names) for names in entry.pop("sources"))
        return StepCall(operands=operands, sources=sources, **entry)

    def module(entry: dict[str, Any]) -> ModuleEntry:
        providers = tuple(ProviderUse(**p) for p in entry.pop("providers"))
        calls = tuple(call(c) for c in entry.pop("calls", []))
        return ModuleEntry(providers=providers, calls=calls, **_tuples(entry))

    def parameters(entries: list[dict[str, Any]]) -> tuple[StoredParameter, ...]:
        return tuple(StoredParameter(**_tuples(p)) for p in entries)

    nested: dict[str, Any] = {
        "model": ModelSpec.from_json(data.pop("model")),
        "kv": KvLayout(**_tuples(data.pop("kv"))),
        "limits": Limits(**data.pop("limits")),
        "arguments": tuple(StepArgument(**_tuples(a)) for a in data.pop("arguments")),
        "modules": tuple(module(m) for m in data.pop("modules")),
        "tensors": tuple(StoredTensor(**_tuples(t)) for t in data.pop("tensors")),
        "files": {n: FileEntry(**e) for n, e in data.pop("files").items()},
        "parameters": {n: parameters(p) for n, p in data.pop("parameters", {}).items()},
    }
    return Manifest(**nested, **data)


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def check_file(
    root: Path, name: str, entry: FileEntry, verify_weights: str, memo: DigestMemo
) -> None:
    """Compare one file of an artifact with its manifest.  Raises ArtifactCorruptError."""
    path = root / name
    if Path(name).name != name:
        raise ArtifactCorruptError(f"{root}: the manifest names a file outside: {name!r}")
    if not path.is_file():
        raise ArtifactCorruptError(f"{root}: {name} is missing; compile the model again")
    if path.stat().st_size != entry.num_bytes:
        raise ArtifactCorruptError(
            f"{path} has {path.stat().st_size} bytes, the manifest says {entry.num_bytes}; "
            "compile the model again"
        )
    if name.endswith(".irpa") and verify_weights == "never":
        return
    remembered = name.endswith(".irpa") and verify_weights == "first"
    found = memo.sha256(path) if remembered else sha256_of(path)
    if found != entry.sha256:
        raise ArtifactCorruptError(
            f"{path} is damaged: sha256 is {found}, the manifest says {entry.sha256}; "
            "compile the model again"
        )
