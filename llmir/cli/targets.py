"""llmir targets: what can be compiled for here, what runs here, and who lowers the ops."""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec
from typing import Any

import click

from llmir.cli.options import json_option
from llmir.cli.output import print_json, table
from llmir.compiler.versions import check_tools, tool_versions
from llmir.errors import ToolVersionError
from llmir.host import missing_here
from llmir.runtime.devices import DeviceInfo, available_devices
from llmir.targets import ALIASES, TARGETS, Target

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
    takes.
    """
    document = _document()
    if as_json:
        print_json(document)
        return
    rows: list[tuple[object, ...]] = [("target", "also called", "compiles", "kernels", "runs here")]
    for entry in document["targets"]:
        runs = ", ".join(entry["devices"]) or f"no: {entry['why_not']}"
        can = "yes" if document["can_compile"] else "no"
        level = entry["isa_level"] or "none"
        rows.append((entry["name"], ", ".join(entry["aliases"]), can, level, runs))
    click.echo(table(rows, indent=0))
    click.echo("\ndevices\n" + table([(d["uri"], d["name"]) for d in document["devices"]]))
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
    return {
        "can_compile": not problem,
        "compile_problem": problem,
        "tools": tool_versions(),
        "devices": [{"uri": d.uri, "name": d.name} for d in devices],
        "providers": _providers(),
        "targets": [_describe(target, devices) for target in TARGETS.values()],
    }


def _describe(target: Target, devices: tuple[DeviceInfo, ...]) -> dict[str, Any]:
    found = [d.uri for d in devices if d.uri.split("://")[0] == target.driver]
    why_not = "" if found else f"no device of the driver {target.driver}"
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
        "flags": list(target.flags),
        "devices": found,
        "why_not": why_not,
    }


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
