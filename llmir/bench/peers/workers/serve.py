"""The process of one side: `python serve.py MODULE`, commands in, answers out, JSON lines both.

    {"do": "load", "spec": {…}}                                   → {"kv_dtype": …, "versions": …}
    {"do": "decode", "batch": B, "depth": D, "steps": N, "seed": s} → {"seconds": …}
    {"do": "prefill", "tokens": T, "seed": s}                      → {"seconds": …}
    {"do": "generate", "prompts": [[id, …], …], "max_tokens": N, "temperature": t, "top_p": p,
     "seed": s}                                                    → {"seconds": …}
    {"do": "logits", "tokens": [id, …], "place": file}             → {}
    {"do": "make", "spec": {…}}                                    → {}

MODULE, a file beside this one, has `class Side` with `__init__(spec)`, `about()`,
`decode(batch, depth, steps, seed)` and `prefill(tokens, seed)`;
`generate(prompts, max_tokens, temperature, top_p, seed)` if it is compared offline, which answers
all prompts with as many tokens each, whatever they are; `logits(tokens, place)` if
its accuracy is measured, which writes float32 [tokens, V] into a file; and `make(spec)` if its
peer has model files to write.  The answer to everything has `peak_memory_bytes`, the most since
the command came; or it is
{"error": message}; that to a round has `others_cpu_share`, the CPU time that other processes
took meanwhile, of all there was.  What a library prints goes to stderr.

Runs under a peer's Python: the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Steps of each sequence before the clock starts, in every round of decoding.
WARM_UP_STEPS = 3


def peak_memory_bytes() -> int | None:
    """The most memory that this process had resident; of files mapped, the pages touched."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def forget_peak() -> None:
    """Have the most that was resident count from now on; Linux alone."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def cpu_seconds() -> tuple[float, float, float] | None:
    """CPU seconds so far: all cores' together, of these busy, and of these this process's."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    # user nice system idle iowait irq softirq steal, in ticks; guest time is in user.
    ticks = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:9]]
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    own = os.times()
    busy = sum(ticks) - ticks[3] - ticks[4]
    return sum(ticks) * tick_s, busy * tick_s, sum(own[:4])


def measured(do_round: Callable[[], float]) -> dict[str, Any]:
    """The answer to a round, which returns the seconds that it timed."""
    before = cpu_seconds()
    seconds = do_round()
    after = cpu_seconds()
    if before is None or after is None:
        return {"seconds": seconds, "others_cpu_share": None}
    total, busy, own = (b - a for a, b in zip(before, after, strict=True))
    # Ticks are coarse: a short round may seem to have used more than there was.
    share = min(1.0, max(0.0, busy - own) / max(total, 1e-9))
    return {"seconds": seconds, "others_cpu_share": share}


def end_with_parent() -> None:
    """Have the kernel end this process when its parent ends, which may be while it is stopped."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, Linux alone
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module = importlib.import_module(sys.argv[1])
    # This directory must not stand before the peer's own packages.
    sys.path.pop(0)
    side: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        forget_peak()
        try:
            answer = {}
            match command.pop("do"):
                case "load":
                    side = module.Side(command["spec"])
                    answer = side.about()
                case "decode":
                    decode = functools.partial(side.decode, warm_up=WARM_UP_STEPS, **command)
                    answer = measured(decode)
                case "prefill":
                    answer = measured(functools.partial(side.prefill, **command))
                case "generate":
                    answer = measured(functools.partial(side.generate, **command))
                case "logits":
                    side.logits(**command)
                case "make":
                    module.make(command["spec"])
        except Exception as error:  # whatever a peer raises is its answer, and in its log
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps({**answer, "peak_memory_bytes": peak_memory_bytes()}) + "\n")
        answers.flush()
    sys.stderr.flush()
    # Some libraries hang or crash in their destructors; all has been answered.
    os._exit(0)


if __name__ == "__main__":
    main()
