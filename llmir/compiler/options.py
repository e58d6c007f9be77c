"""What a caller may choose when compiling, and the key that stands for a compilation.

Nothing here imports torch or IREE: a cache hit must not.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from llmir import formats
from llmir.artifact import FORMAT_VERSION, KV_ELEMENTS
from llmir.compiler.activations import parse_activations
from llmir.compiler.versions import tool_versions
from llmir.cpu_levels import OBJECTS, host_level
from llmir.digests import DigestMemo
from llmir.errors import OptionError
from llmir.host import host_cpu
from llmir.passes.pipelines import FUSIONS
from llmir.targets import Target

KV_DTYPES = ("auto", *KV_ELEMENTS)
PAGE_SIZES = (8, 16, 32)
FUSION_MODES = tuple(FUSIONS)
DEFAULT_MAX_MODEL_LEN = 8192
DEFAULT_MAX_NUM_SEQS = 64
SERVING_PACKAGES = frozenset({"bench", "cli", "engine", "integrations", "runtime", "server"})
"""What shapes no artifact: who works on the server does not compile again at each change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """Options of a compilation, the same for all its targets.

    weights:                 one of formats.WEIGHT_MODES; "keep" stores what the model has
    kv_dtype:                how the KV cache stores numbers: "f32", "f16", "bf16", "int8" (with
                             a scale for each token and head), "fp8" (float8_e4m3fn); "auto":
                             bf16 where a target is a CPU with C kernels or CUDA, which read
                             it fastest and the others' code reads too; else f32
    page_size:               tokens per KV page
    max_model_len:           longest sequence; None: the model's own, at most 8192
    max_num_batched_tokens:  most tokens in a step
    max_num_seqs:            most sequences in a step; None: 64, or as many as there are
                             tokens if those are fewer
    activations:             precision of the matmuls' inputs: "auto", one of "int8", "int8_16",
                             "bf16", "int12", "int16", "f32", or a mapping of roles; see
                             compiler.activations
    fusion:                  "all"; "ops": every kernel is a dispatch of its own; "none": every op
                             of the model too.  For finding out where time goes, or a fault
    op_priority:             op → the providers to try, in order
    """

    weights: str = "keep"
    kv_dtype: str = "auto"
    page_size: int = 16
    max_model_len: int | None = None
    max_num_batched_tokens: int = 512
    max_num_seqs: int | None = None
    activations: str | Mapping[str, str] = "auto"
    fusion: str = "all"
    op_priority: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("weights", self.weights, formats.WEIGHT_MODES)
        _one_of("kv_dtype", self.kv_dtype, KV_DTYPES)
        _one_of("page_size", self.page_size, PAGE_SIZES)
        _one_of("fusion", self.fusion, FUSION_MODES)
        _at_least_one("max_num_batched_tokens", self.max_num_batched_tokens)
        if self.max_model_len is not None:
            _at_least_one("max_model_len", self.max_model_len)
        if self.max_num_seqs is not None:
            _at_least_one("max_num_seqs", self.max_num_seqs)
            if self.max_num_seqs > self.max_num_batched_tokens:
                raise OptionError(
                    f"max_num_seqs {self.max_num_seqs} is more than max_num_batched_tokens "
                    f"{self.max_num_batched_tokens}: every sequence needs a token of each step"
                )
        parse_activations(self.activations)
        if not isinstance(self.op_priority, Mapping) or any(
            isinstance(names, str) for names in self.op_priority.values()
        ):
            raise OptionError(
                "op_priority must be a mapping such as {'rms_norm': ['portable']}; "
                f"got {self.op_priority!r}"
            )

    def kv_dtype_for(self, targets: Sequence[Target]) -> str:
        """The element type of the KV cache, "auto" resolved."""
        if self.kv_dtype != "auto":
            return self.kv_dtype
        kernels = any(t.isa_level is not None or t.kind == "cuda" for t in targets)
        return "bf16" if kernels else "f32"

    @property
    def num_seqs(self) -> int:
        """The most sequences in a step, the default resolved."""
        if self.max_num_seqs is not None:
            return self.max_num_seqs
        return min(DEFAULT_MAX_NUM_SEQS, self.max_num_batched_tokens)

    def to_json(self) -> dict[str, Any]:
        """As the manifest records it."""
        return {**dataclasses.asdict(self), "max_num_seqs": self.num_seqs}


def option_names() -> tuple[str, ...]:
    """The keyword options of `llmir.compile`."""
    return tuple(f.name for f in dataclasses.fields(CompileOptions))


def make_options(given: Mapping[str, Any]) -> CompileOptions:
    """CompileOptions from keyword arguments; an unknown one is refused by name."""
    for name in given:
        if name not in option_names():
            raise OptionError(
                f"compile has no option {name!r}; it has: {', '.join(option_names())}"
            )
    return CompileOptions(**given)


def cache_key(files: Sequence[str], targets: Sequence[str], options: CompileOptions) -> str:
    """A name for the artifact that these inputs give: 32 hexadecimal digits.

    It covers the bytes of the model's files, targets, options, the pinned tools'
    versions, llmir's own code and the packages that add ops or providers; not where
    the model lies or what a GGUF file is called.
    """
    memo = DigestMemo.default()
    facts = {
        "files": sorted((_name_in_model(Path(f)), memo.sha256(Path(f))) for f in files),
        "targets": list(targets),
        "options": options.to_json(),
        "tools": tool_versions(),
        "format": FORMAT_VERSION,
        "code": _code_digest(),
        "plugins": _plugins(),
        "host": _host_cpu() if "cpu:host" in targets else "",
    }
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _name_in_model(path: Path) -> str:
    """A file's name as far as it decides what the file is: of a GGUF file, which shard."""
    if path.suffix.lower() != ".gguf":
        return path.name
    shard = re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name.lower())
    return shard[0] if shard else ".gguf"


@functools.cache
def _code_digest() -> str:
    """Digest of llmir's sources and kernels: other code may write another artifact."""
    root = Path(__file__).parent.parent
    sources = [
        path
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] not in SERVING_PACKAGES
    ]
    digest = hashlib.sha256()
    for path in sorted([*sources, *OBJECTS.rglob("*.o"), *OBJECTS.rglob("*.spv")]):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _plugins() -> list[str]:
    """The installed packages that add ops or providers, with their versions."""
    found = (p for g in ("llmir.ops", "llmir.providers") for p in metadata.entry_points(group=g))
    return sorted(f"{p.value} {p.dist.version if p.dist else ''}" for p in found)


def _host_cpu() -> str:
    level = host_level()
    return json.dumps([level.name if level else "", *sorted(host_cpu().features)])


def _one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise OptionError(f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}")


def _at_least_one(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} must be a positive whole number; got {value!r}")
