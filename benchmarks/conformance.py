"""Which op computes what it should, on which target: every op × provider × target × dtype.

    python benchmarks/conformance.py --output benchmarks/results/conformance_<hardware>_<date>.md
    python benchmarks/conformance.py --targets vulkan --ops paged_attention,append_kv

What the registry has of ops and providers, plugins of others included, is compiled for every
target, and run and compared with numpy where this machine has a device for it.  All of it takes
some ten minutes on two cores.  Exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
# In the place of this file's directory, whose name for it is the package's of the tests.
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from conformance.on_targets.draws import ops_without_draws  # noqa: E402
from conformance.on_targets.suite import TARGETS, run_target  # noqa: E402
from conformance.on_targets.table import markdown, summary  # noqa: E402

from llmir.bench.report import hardware, heading, versions  # noqa: E402
from llmir.compiler.versions import tool_versions  # noqa: E402
from llmir.runtime.devices import available_devices  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help="default: %(default)s")
    parser.add_argument("--ops", default="", help="only these; default: all")
    parser.add_argument("--quick", action="store_true", help="one shape of each")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers drawn")
    parser.add_argument("--output", type=Path, help="where the page is written; default: printed")
    args = parser.parse_args()
    machine = heading(hardware())
    ops = [op for op in args.ops.split(",") if op]
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        for target in args.targets.split(","):
            outcomes += run_target(
                target,
                Path(scratch),
                ops=ops,
                every=not args.quick,
                seed=args.seed,
                say=lambda text: print(text, file=sys.stderr, flush=True),
            )
    page = "\n".join([*_head(machine), markdown(outcomes)])
    if args.output:
        args.output.write_text(page, encoding="utf-8")
        print(summary(outcomes))
    else:
        print(page, end="")
    missing = ops_without_draws()
    if missing:
        print(f"the suite has no draws for: {', '.join(missing)}", file=sys.stderr)
    return int(any(o.status == "failed" for o in outcomes) or bool(missing))


def _head(machine: str) -> list[str]:
    tools = ", ".join(f"{name} {v}" for name, v in {**versions(), **tool_versions()}.items())
    devices = ", ".join(f"{d.uri} ({d.name})" for d in available_devices())
    return [
        "# Conformance: op × provider × target × dtype",
        "",
        f"- {machine}",
        f"- devices: {devices}",
        f"- {tools}",
        f"- {datetime.now(UTC):%Y-%m-%d}: `{shlex.join(['python', *sys.argv])}`",
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
