"""Frozen descriptions that both towers share, and the only reader of the environment.

`ModelSpec` is what an importer learns about a model and all that the model
builders, the manifest and the engine need to know of it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmir.errors import OptionError

RopeKind = Literal["none", "linear", "llama3", "yarn", "dynamic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context a model was trained on.

    kind:
        none     plain RoPE (Su et al., 2021)
        linear   positions divided by `factor` (Chen et al., 2023)
        llama3   Llama 3.1's frequency-dependent interpolation
        yarn     Peng et al., 2023
        dynamic  NTK scaling that depends on the longest sequence in a batch; llmir
                 serves it within `original_max_position_embeddings`, where it
                 equals "none", and refuses longer sequences by name
    """

    kind: RopeKind = "none"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: the paper's 0.1 ln(factor) + 1
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn: round the correction range to whole dims


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer, as far as llmir needs to know it.

    Sizes are counts of elements or heads.  `sliding_windows[i]` is the number
    of positions that layer i attends to, itself included; None is full
    attention.
    """

    architecture: str  # a name in models.REGISTRY: "llama", "mistral", "qwen2", "qwen3"
    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling = RopeScaling()
    sliding_windows: tuple[int | None, ...] = ()
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False  # bias of the attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False
    hidden_act: str = "silu"  # or gelu_pytorch_tanh

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dict that `from_json` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_json`.  Raises TypeError on unknown or missing fields."""
        fields = dict(data)
        fields["rope_scaling"] = RopeScaling(**fields.get("rope_scaling", {}))
        fields["sliding_windows"] = tuple(fields.get("sliding_windows", ()))
        return cls(**fields)


TOP_K = 64
"""How many of the largest logits of a row `step_topk` returns, where a vocabulary has as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What llmir takes from the environment.

    cache_dir:    LLMIR_CACHE, else $XDG_CACHE_HOME/llmir, else ~/.cache/llmir
    hub_offline:  HF_HUB_OFFLINE is 1/true/yes/on: never ask a hub
    """

    cache_dir: Path
    hub_offline: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the environment.  Raises OptionError on a value it does not understand."""
        env = os.environ if environ is None else environ
        given = env.get("LLMIR_CACHE")
        try:
            if given:
                cache = Path(given).expanduser()
            else:
                base = env.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
                cache = Path(base).expanduser() / "llmir"
        except RuntimeError as error:
            raise OptionError(f"no place for the cache ({error}); set LLMIR_CACHE") from error
        # Absolute: the process may move.
        return cls(cache_dir=cache.absolute(), hub_offline=_env_flag(env, "HF_HUB_OFFLINE"))


def printable_name(path: Path) -> str:
    """The last part of a path as text that can be stored: file names are bytes."""
    return os.fsencode(path.name).decode("utf-8", "replace")


def _env_flag(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise OptionError(f"{name} must be 0 or 1, not {env[name]!r}")
