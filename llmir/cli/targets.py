"""llmir targets: what can be compiled for here, what runs here, and who lowers the ops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from importlib.util import find_spec
from typing import Any

import click

from llmir.cli.options import json_option
from llmir.cli.output import human_bytes, print_json, table
from llmir.compiler.versions import check_tools, tool_versions
from llmir.errors import ToolVersionError
from llmir.host import missing_here
from llmir.runtime.choice import unfit_for
from llmir.runtime.devices import DeviceInfo, available_devices, driver_problem
from llmir.runtime.memory import total_bytes
from llmir.targets import ALIASES, TARGETS, Target

DRIVERS = tuple(dict.fromkeys(target.driver for target in TARGETS.values()))

EPILOG = """\b
Examples:
  llmir targets
  llmir compile model.gguf --target cpu:x86-64-v3,vulkan
  llmir run model.llmir "Hello" --device vulkan://0
"""


@click.command(epilog=EPILOG)
@json_option
def targets(as_json: bool) -> None:
    """List the targets: can this machine compile for them, and run what was compiled.

    A target is what `llmir compile --target` takes; a device is what `llmir run --device`
    takes.  Providers have kernels for a target, portable code for every op that they have none
    for.  Memory of local-task is what can be had now.
    """
    document = _document()
    if as_json:
        print_json(document)
        return
    rows: list[tuple[object, ...]] = [
        ("target", "also called", "compiles", "providers", "kernels", "runs here")
    ]
    for entry in document["targets"]:
        runs = ", ".join(entry["devices"]) or f"no: {entry['why_not']}"
        can = "yes" if entry["can_compile"] else "no"
        level = entry["isa_level"] or "none"
        names = ",".join(entry["providers"]) or "unknown"
        rows.append((entry["name"], ", ".join(entry["aliases"]), can, names, level, runs))
    click.echo(table(rows, indent=0))
    click.echo(
        "\ndevices\n"
        + table([(d["uri"], d["name"], _size(d["memory_bytes"])) for d in document["devices"]])
    )
    if document["drivers_that_fail"]:
        click.echo("\nno devices\n" + table(list(document["drivers_that_fail"].items())))
    providers = document["providers"]
    click.echo(
        "\nproviders, and the ops they can lower\n"
        + table([(name, ", ".join(ops)) for name, ops in providers.items()])
    )
    click.echo("\ncompile tools\n" + table(list(document["tools"].items())))
    if document["compile_problem"]:
        click.echo(f"  {document['compile_problem']}")


def _document() -> dict[str, Any]:
    try:
        check_tools()
        problem = ""
    except ToolVersionError as error:
        problem = str(error)
    devices = available_devices()
    providers = _providers()
    return {
        "can_compile": not problem,
        "compile_problem": problem,
        "tools": tool_versions(),
        "devices": [
            {"uri": d.uri, "name": d.name, "memory_bytes": total_bytes(d.uri)} for d in devices
        ],
        "drivers_that_fail": {name: why for name in DRIVERS if (why := driver_problem(name))},
        "providers": providers,
        "targets": [
            {"can_compile": not problem, **_describe(target, devices, providers)}
            for target in TARGETS.values()
        ],
    }


def _describe(
    target: Target, devices: tuple[DeviceInfo, ...], providers: Collection[str]
) -> dict[str, Any]:
    on_driver = [d.uri for d in devices if d.uri.split("://")[0] == target.driver]
    lacking = {uri: unfit_for(target.name, uri) for uri in on_driver}
    found = [uri for uri in on_driver if not lacking[uri]]
    why_not = ""
    if not found:
        why_not = "; ".join(f"{uri}: {why}" for uri, why in lacking.items())
        why_not = why_not or f"no device of the driver {target.driver}"
    level = target.isa_level
    if level is not None:
        features = tuple(dict.fromkeys((*level.features, *target.cpu_features)))
        if missing := missing_here(level.arch, features):
            found, why_not = [], f"needs {', '.join(missing)}"
    return {
        "name": target.name,
        "aliases": [alias for alias, name in ALIASES.items() if name == target.name],
        "driver": target.driver,
        "isa_level": level.name if level else "",
        "providers": [p for p in (target.kernel_provider, "portable") if p in providers],
        "flags": list(target.flags),
        "devices": found,
        "why_not": why_not,
    }


def _size(num_bytes: int | None) -> str:
    return "unknown memory" if num_bytes is None else human_bytes(num_bytes)


def _providers() -> dict[str, list[str]]:
    """Provider → the ops it has lowerings for; empty where the compile side is not installed."""
    if find_spec("iree.compiler") is None:
        return {}
    from llmir.dialect_ext.registry import lowerings_of, op_names

    ops: defaultdict[str, list[str]] = defaultdict(list)
    for op in op_names():
        for provider in sorted({lowering.provider for lowering in lowerings_of(op)}):
            ops[provider].append(op)
    return dict(ops)
