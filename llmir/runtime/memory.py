"""A device's memory: how much the KV pages get, and what to say when it is not enough."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from llmir.artifact import Artifact, ModuleEntry
from llmir.errors import DeviceError, DeviceMemoryError, OptionError
from llmir.host import available_bytes
from llmir.runtime.devices import facts_of, first_line, positive
from llmir.targets import split_device

DEFAULT_KV_BYTES = 1 << 30
LEAST_PAGES = 2  # one is for padding
# Rows of logits in a step, as the engine asks for by default.
_LOGIT_ROWS = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """What a module wants of its device's memory, in bytes.

    device:   its URI
    weights:  of the weights file; on a CPU mapped, elsewhere copied
    kv:       of the KV pages
    step:     of one step's tensors, estimated: those that the largest step has at a time
    total:    all that the device has; on a CPU, what can be had now; None: not told
    """

    device: str
    weights: int
    kv: int
    step: int
    total: int | None

    def error(
        self, failed: str, error: Exception | None = None, advice: str = ""
    ) -> DeviceMemoryError:
        """Why `failed` ("weights", "KV pages", "a step of 12 tokens") does not fit.

        advice: what to do first, if it is not to give the KV pages less
        """
        told = "an unknown amount" if self.total is None else _mib(self.total)
        because = f" ({first_line(error)})" if error is not None else ""
        advice = advice or (
            "Give the KV pages less (--kv-cache-memory, --device-memory-fraction), or"
        )
        return DeviceMemoryError(
            f"{self.device} is out of memory for {failed}{because}. Wanted: weights "
            f"{_mib(self.weights)}, KV pages {_mib(self.kv)}, tensors of a step about "
            f"{_mib(self.step)}; the device has {told}. {advice} "
            "compile with smaller weights (--weights) or fewer tokens a step "
            "(--max-num-batched-tokens)"
        )

    def check(self) -> None:
        """Raise DeviceMemoryError if a GPU's memory is known and less than what is wanted."""
        on_cpu = split_device(self.device)[0].startswith("local")
        if self.total is not None and not on_cpu and self.weights + self.kv > self.total:
            failed = "the weights" if self.weights > self.total else "the KV pages"
            raise self.error(failed)


def is_out_of_memory(error: Exception) -> bool:
    """Whether IREE says that memory ran out."""
    return "RESOURCE_EXHAUSTED" in str(error) or "OUT_OF_MEMORY" in str(error).upper()


def total_bytes(device: str) -> int | None:
    """Memory of a device; of the CPU, what can be had now.  None: its driver does not say."""
    if split_device(device)[0].startswith("local"):
        return available_bytes()
    try:
        return facts_of(device).memory_bytes
    except DeviceError:
        return None  # opening it says why


def plan(
    artifact: Artifact,
    module: ModuleEntry,
    device: str,
    kv_cache_bytes: int | None,
    memory_fraction: float | None,
) -> tuple[int, MemoryUse]:
    """Pages of every group's pool, and what all of it takes.

    Args:
        kv_cache_bytes: memory for the KV pages; None: what `memory_fraction` leaves them.
        memory_fraction: of the device's memory, how much llmir may use: weights, tensors of a
            step and KV pages together; None: the pages get 1 GiB, or half of what is left where
            that is less.

    As many pages as fit, and no more than can ever be used.  Every group gets the same number:
    a window's pages are freed as it moves, so a group that needs fewer leaves some free.
    Raises: OptionError for a budget of the wrong kind or too small, or a fraction of what is not
    known; DeviceMemoryError if the rest leaves none.
    """
    kv, limits = artifact.manifest.kv, artifact.manifest.limits
    empty = MemoryUse(
        device=device,
        weights=artifact.manifest.files[module.weights].num_bytes,
        kv=0,
        step=_step_bytes(artifact),
        total=total_bytes(device),
    )
    bytes_per_page = len(kv.group_of_layer) * kv.page_bytes
    pages_per_seq = -(-limits.max_model_len // kv.page_size)
    most = limits.max_num_seqs * pages_per_seq + 1
    budget = _budget(empty, kv_cache_bytes, memory_fraction, LEAST_PAGES * bytes_per_page)
    pages = min(most, budget // bytes_per_page)
    if pages < LEAST_PAGES:
        raise OptionError(
            f"a KV cache of {budget} bytes holds {pages} pages; it needs at least {LEAST_PAGES} "
            f"of {bytes_per_page} bytes each (page 0 is kept for padding)"
        )
    if pages <= pages_per_seq:
        _log.info(
            "the KV cache holds %d tokens, fewer than one sequence of %d",
            (pages - 1) * kv.page_size,
            limits.max_model_len,
        )
    use = MemoryUse(
        device=device,
        weights=empty.weights,
        kv=pages * bytes_per_page,
        step=empty.step,
        total=empty.total,
    )
    use.check()
    return pages, use


def _budget(use: MemoryUse, given: int | None, fraction: float | None, least: int) -> int:
    """Bytes for the KV pages."""
    if fraction is None:
        if given is not None:
            return positive("kv_cache_memory_bytes", given)
        if use.total is None:
            return DEFAULT_KV_BYTES
        return min(DEFAULT_KV_BYTES, max(0, use.total - use.weights - use.step) // 2)
    if given is not None:
        raise OptionError(
            "kv_cache_memory_bytes and device_memory_fraction both say how large the KV cache is; "
            "give one"
        )
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise OptionError(
            f"device_memory_fraction must be more than 0 and at most 1, got {fraction!r}"
        )
    if use.total is None:
        driver = split_device(use.device)[0]
        raise OptionError(
            f"device_memory_fraction: the driver {driver} does not tell how much memory "
            f"{use.device} has; give kv_cache_memory_bytes (--kv-cache-memory) in its place"
        )
    left = int(fraction * use.total) - use.weights - use.step
    if left < least:
        raise use.error(
            f"KV pages within {fraction} of its memory", advice=_more(use, least, use.total)
        )
    return left


def _more(use: MemoryUse, least: int, total: int) -> str:
    """The advice where a fraction of the memory is too small: how large it must be."""
    needed = (use.weights + use.step + least) / total
    if needed > 1:
        return "All of it would not be enough:"
    digits = 2 - math.floor(math.log10(needed))
    rounded = min(1.0, math.ceil(needed * 10**digits) / 10**digits)
    return f"Give a larger part (--device-memory-fraction, {rounded:g} at least), or"


def _step_bytes(artifact: Artifact) -> int:
    """An estimate of what the largest step has in memory at a time, in float32.

    The residual twice, a normed copy and the sum, q, k, v and what attention makes of them,
    gate, up and their product; and the logits.
    """
    model, limits = artifact.manifest.model, artifact.manifest.limits
    heads = model.num_heads + 2 * model.num_kv_heads
    row = 4 * model.hidden_size + 3 * model.intermediate_size + 2 * heads * model.head_dim
    tokens = limits.max_num_batched_tokens
    return 4 * (tokens * row + min(tokens, _LOGIT_ROWS) * model.vocab_size)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"
