"""Steps of an artifact, timed: the StepRunner alone, without scheduler, sampler and text.

`measure_case` measures one row, in a process that does nothing else (`worker`), so that
load time and peak memory are those of serving this row.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from llmir import artifact as artifacts
from llmir.bench.cases import Case, Sequences, chunks_of
from llmir.bench.costs import Span, StepCosts
from llmir.bench.energy import Meter, NoMeter
from llmir.engine.from_artifact import open_artifact
from llmir.runtime.base import StepRunner

DECODE_STEPS_PER_REPEAT = 20
DECODE_WARM_UP_STEPS = 3
# On slow devices, fewer: as many as this time holds.
LONG_REPEAT_S, LONG_WARM_UP_S = 4.0, 1.0
LEAST_STEPS_PER_REPEAT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How the artifact is opened; as in engine.from_artifact.open_artifact.

    zero_kv  decode, on CPUs: at depth among zeros in place of computed tokens, which takes a
             step as long and is there at once
    """

    device: str | None = None
    num_threads: int | None = None
    kv_cache_memory_bytes: int | None = None
    zero_kv: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was seen in a row's process; nothing is left out or averaged here.

    load_s                   artifacts.load, then device, module, weights, KV pools, tokenizer
    first_step_s             the first step of all, of one token
    step_s                   every measured step's seconds, [repeat][step]
    first_token_s            prefill, per repeat: from token ids to the first token chosen
    others_cpu_share         CPU time that other processes took meanwhile, of all there was;
                             None where /proc has none
    peak_memory_bytes        VmHWM, mapped weights among them; None where /proc has none
    kv_pool_bytes            allocated; pages that nothing was written to cost no memory
    kv_used_bytes            of the pages that this row wrote, and page 0
    energy_j                 of the measured steps; None where the device does not tell
    energy_source            where that comes from, or why there is none
    device_peak_bytes        the most that IREE's allocator held on the device, of its count;
                             None if it does not count
    """

    load_s: float
    first_step_s: float
    step_s: list[list[float]]
    first_token_s: list[float]
    others_cpu_share: float | None
    peak_memory_bytes: int | None
    kv_pool_bytes: int
    kv_used_bytes: int
    energy_j: float | None = None
    energy_source: str = ""
    device_peak_bytes: int | None = None


def measure_case(
    path: Path,
    case: Case,
    options: RunOptions,
    repeats: int,
    meter: Meter = NoMeter("not asked for"),  # noqa: B008  it has no state
) -> Measured:
    """Open the artifact and measure one row.  Peak memory is this whole process's.

    Raises as artifact.load and engine.from_artifact.open_artifact; DeviceError.
    """
    # What is imported belongs to the start of a process, not to the artifact.
    from llmir.runtime.choice import choose_module
    from llmir.runtime.session import Session

    start = time.perf_counter()
    artifact = artifacts.load(path)
    runner = open_artifact(
        artifact,
        device=options.device,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        num_threads=options.num_threads,
    ).runner
    load_s = time.perf_counter() - start
    first_step_s, _ = Sequences(runner, 1, 1).step(Span(0, 1))

    first_token_s: list[float] = []
    before = cpu_seconds()
    if case.phase == "decode":
        depth = case.depth
        if options.zero_kv and isinstance(runner, Session) and runner.module.cpu_arch:
            runner.zero_kv(1 + case.batch * -(-case.tokens_per_seq // runner.limits.page_size))
            depth = 0
        step_s, energy_j = _measure_decode(runner, case, repeats, depth, meter)
    else:
        step_s, first_token_s, energy_j = _measure_prefill(runner, case, repeats, meter)
    others = share_of_others(before, cpu_seconds())
    costs = StepCosts.of(artifact.manifest, choose_module(artifact, options.device))
    return Measured(
        load_s=load_s,
        first_step_s=first_step_s,
        step_s=step_s,
        first_token_s=first_token_s,
        others_cpu_share=others,
        peak_memory_bytes=peak_memory_bytes(),
        kv_pool_bytes=costs.pool_bytes(runner.limits.num_pages),
        kv_used_bytes=costs.kv_bytes(case.batch, case.tokens_per_seq),
        energy_j=energy_j,
        energy_source=meter.source,
        device_peak_bytes=_device_peak_bytes(runner),
    )


def _measure_prefill(
    runner: StepRunner, case: Case, repeats: int, meter: Meter
) -> tuple[list[list[float]], list[float], float | None]:
    seqs = Sequences(runner, 1, case.prompt_tokens)
    spans = list(chunks_of(0, case.prompt_tokens, runner.limits.max_num_batched_tokens))
    step_s, first_token_s = [], []
    for repeat in range(1 + repeats):
        if repeat == 1:
            meter.begin()
        start = time.perf_counter()
        steps = [seqs.step(span) for span in spans]
        first_token_s.append(time.perf_counter() - start)
        step_s.append([seconds for seconds, _ in steps])
        seqs.release()
    return step_s[1:], first_token_s[1:], meter.end()  # the first was to warm up


def _measure_decode(
    runner: StepRunner, case: Case, repeats: int, computed_depth: int, meter: Meter
) -> tuple[list[list[float]], float | None]:
    """computed_depth: how many tokens of each sequence are computed before."""
    seqs = Sequences(runner, case.batch, case.depth + 1)
    seqs.fill(computed_depth)
    span = Span(case.depth, case.depth + 1)
    took_s, steps = LONG_REPEAT_S, DECODE_STEPS_PER_REPEAT
    for _ in range(DECODE_WARM_UP_STEPS):
        took_s = min(took_s, seqs.step(span)[0])
        if took_s > LONG_WARM_UP_S:
            break
    if took_s * steps > LONG_REPEAT_S:
        steps = max(LEAST_STEPS_PER_REPEAT, round(LONG_REPEAT_S / took_s))
    meter.begin()
    step_s = [[seqs.step(span)[0] for _ in range(steps)] for _ in range(repeats)]
    return step_s, meter.end()


def _device_peak_bytes(runner: StepRunner) -> int | None:
    from llmir.runtime.session import Session

    if not isinstance(runner, Session) or not runner.device.allocator.has_statistics:
        return None
    counts = runner.device.allocator.statistics
    return int(counts["device_bytes_peak"])


def cpu_seconds() -> tuple[float, float, float] | None:
    """CPU seconds so far: all cores' together, of these busy, and of these this process's."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    # user nice system idle iowait irq softirq steal, in ticks; guest time is in user.
    ticks = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:9]]
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return sum(ticks) * tick_s, (sum(ticks) - idle) * tick_s, time.process_time()


def share_of_others(
    before: tuple[float, float, float] | None, after: tuple[float, float, float] | None
) -> float | None:
    """The CPU time of other processes between two of `cpu_seconds`, of all there was."""
    if before is None or after is None:
        return None
    total, busy, own = (b - a for a, b in zip(before, after, strict=True))
    # Ticks are coarse: a short measurement may seem to have used more than there was.
    return min(1.0, max(0.0, busy - own) / max(total, 1e-9))


def peak_memory_bytes() -> int | None:
    """The most memory that this process had resident; of files mapped, the pages touched."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024
