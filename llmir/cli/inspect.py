"""llmir inspect: what an artifact is, and why it is so."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import click

from llmir.artifact import KvLayout, Manifest, ModuleEntry, check_file, read_manifest
from llmir.cli.options import json_option, verify_weights_option
from llmir.cli.output import human_bytes, print_json, table
from llmir.digests import DigestMemo
from llmir.errors import ArtifactCorruptError
from llmir.host import missing_here

EPILOG = """\b
Examples:
  llmir inspect model.llmir
  llmir inspect model.llmir --tensors
  llmir inspect model.llmir --json | jq .modules[0].providers
"""


@click.command(epilog=EPILOG)
@click.argument("artifact")
@click.option(
    "--tensors",
    is_flag=True,
    help="List every tensor and parameter, not only sums; with --json, the calls of a step too.",
)
@verify_weights_option
@json_option
def inspect(artifact: str, tensors: bool, verify_weights: str, as_json: bool) -> None:
    """Show what is in ARTIFACT: model, sizes, limits, and for each target its ops.

    Every op is listed with the provider that lowers it and, if others came first, why they
    were refused.  The files are compared with their checksums; if one differs, all the rest
    is shown nevertheless, and the exit code is 5.
    """
    root = Path(artifact)
    manifest = read_manifest(root)
    damage = _damage(root, manifest, verify_weights)
    if as_json:
        print_json(_document(root, manifest, damage, tensors))
    else:
        click.echo(_text(root, manifest, damage, tensors))
    if damage:
        raise ArtifactCorruptError("\n".join(damage))


def kv_bytes_per_token(kv: KvLayout) -> int:
    """Bytes of KV cache that one more token of a sequence takes, all layers together."""
    return kv.token_bytes * len(kv.group_of_layer)


def _damage(root: Path, manifest: Manifest, verify_weights: str) -> list[str]:
    """What is wrong with the files; empty if nothing is."""
    found = []
    for name, entry in manifest.files.items():
        try:
            check_file(root, name, entry, verify_weights, DigestMemo.default())
        except ArtifactCorruptError as error:
            found.append(str(error))
    return found


def _document(root: Path, manifest: Manifest, damage: list[str], tensors: bool) -> dict[str, Any]:
    document = dataclasses.asdict(manifest)
    document["artifact"] = str(root)
    document["damage"] = damage
    document["kv_bytes_per_token"] = kv_bytes_per_token(manifest.kv)
    document["weights"] = _weights(manifest)
    for module, entry in zip(document["modules"], manifest.modules, strict=True):
        module["cannot_run_here"] = _missing(entry)
        if not tensors:
            del module["calls"]
    if not tensors:
        del document["tensors"], document["parameters"]
    return document


def _weights(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Weight archive → its size, the targets that map it, and what is in it."""
    return {
        name: {
            "num_bytes": entry.num_bytes,
            "targets": [m.target for m in manifest.modules if m.weights == name],
            "forms": _forms(manifest, name),
        }
        for name, entry in manifest.files.items()
        if name.endswith(".irpa")
    }


def _forms(manifest: Manifest, archive: str) -> list[dict[str, Any]]:
    """How many tensors, and how many bytes of an archive, went from which format to which.

    The source format of what is made of no tensor, the RoPE table, is "".
    """
    source_formats = {t.name: t.source_format for t in manifest.tensors}
    tensors: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    size: Counter[tuple[str, str]] = Counter()
    for parameter in manifest.parameters.get(archive, ()):
        formats = sorted({source_formats[name] for name in parameter.sources})
        form = (", ".join(formats), parameter.stored_as)
        tensors[form].update(parameter.sources)
        size[form] += parameter.num_bytes
    return [
        {"source_format": a, "stored_as": b, "count": len(tensors[a, b]), "num_bytes": size[a, b]}
        for a, b in sorted(tensors)
    ]


def _missing(module: ModuleEntry) -> list[str]:
    """What a CPU module lacks on this machine; GPUs are seen only when opened."""
    if not module.cpu_arch:
        return []
    return missing_here(module.cpu_arch, module.cpu_features)


def _text(root: Path, manifest: Manifest, damage: list[str], tensors: bool) -> str:
    model, kv, limits = manifest.model, manifest.kv, manifest.limits
    windows = sorted({w for w in kv.group_windows if w is not None})
    rows: list[tuple[str, object]] = [
        ("artifact", root),
        ("model", f"{model.name} ({model.architecture}), from {manifest.source}"),
        (
            "shape",
            f"{model.num_layers} layers, hidden {model.hidden_size}, {model.num_heads} heads of "
            f"{model.head_dim}, {model.num_kv_heads} KV heads, vocabulary {model.vocab_size}",
        ),
        (
            "made",
            f"{manifest.created} by llmir {manifest.llmir_version}, format version "
            f"{manifest.format_version}, key {manifest.cache_key}",
        ),
        ("tools", ", ".join(f"{n} {v}" for n, v in manifest.tools.items())),
        ("options", ", ".join(f"{n}={v}" for n, v in manifest.options.items() if v)),
        (
            "KV cache",
            f"{kv.dtype}, pages of {kv.page_size} tokens, "
            f"{human_bytes(kv_bytes_per_token(kv))} per token"
            + (f", sliding windows {', '.join(map(str, windows))}" if windows else ""),
        ),
        (
            "limits",
            f"{limits.max_model_len} tokens a sequence, {limits.max_num_batched_tokens} tokens "
            f"and {limits.max_num_seqs} sequences a step",
        ),
        ("checksums", f"{len(damage)} files damaged" if damage else "all files match"),
    ]
    parts = [table(rows, indent=0)]
    parts += [_files_text(manifest), *_forms_texts(manifest)]
    parts += [_module_text(manifest, module) for module in manifest.modules]
    if tensors:
        parts.append(
            "tensors\n"
            + table(
                [
                    (
                        t.name,
                        "×".join(map(str, t.shape)),
                        t.source_format,
                    )
                    for t in manifest.tensors
                ]
            )
        )
        parts += [
            f"parameters in {name}\n"
            + table([(p.name, p.stored_as, human_bytes(p.num_bytes)) for p in parameters])
            for name, parameters in manifest.parameters.items()
        ]
    return "\n\n".join(parts)


def _files_text(manifest: Manifest) -> str:
    weights = _weights(manifest)
    rows = []
    for name, entry in manifest.files.items():
        users = f"for {', '.join(weights[name]['targets'])}" if name in weights else ""
        rows.append((name, human_bytes(entry.num_bytes), users))
    return "files\n" + table(rows)


def _forms_texts(manifest: Manifest) -> list[str]:
    return [
        f"{name}: format in the model → here, tensors, size\n"
        + table(
            [
                (
                    f"{f['source_format'] or 'RoPE table'} → {f['stored_as']}",
                    f["count"] or "",
                    human_bytes(f["num_bytes"]),
                )
                for f in entry["forms"]
            ]
        )
        for name, entry in _weights(manifest).items()
        if entry["forms"]
    ]


def _cost(manifest: Manifest, module: ModuleEntry) -> str:
    """Bytes that a target has to itself, and those that it shares."""
    others = [m.target for m in manifest.modules if m.weights == module.weights and m != module]
    code, weights = (manifest.files[n].num_bytes for n in (module.file, module.weights))
    shared = f", which {', '.join(others)} read too" if others else ""
    return f"{human_bytes(code)} of code, {human_bytes(weights)} of weights{shared}"


def _module_text(manifest: Manifest, module: ModuleEntry) -> str:
    missing = _missing(module)
    rows: list[tuple[str, object]] = [
        ("file", f"{module.file} with {module.weights}"),
        ("costs", _cost(manifest, module)),
        ("flags", " ".join(module.flags)),
        ("functions", ", ".join(module.entry_points)),
    ]
    if module.cpu_arch:
        features = " ".join(sorted(set(module.cpu_features)))
        rows.append(("CPU", f"{module.cpu} ({module.cpu_arch}): {features}"))
        rows.append(("runs here", f"no: needs {', '.join(missing)}" if missing else "yes"))
    else:
        needs = f" with {', '.join(module.needs)}" if module.needs else ""
        rows.append(("runs on", f"devices of the driver {module.driver}{needs}"))
    ops = []
    for use in module.providers:
        provider = f"{use.provider}/{use.variant}".rstrip("/")
        refused = f"refused: {use.refused}" if use.refused else ""
        ops.append((f"{use.count} ×", f"llm.{use.op}", provider, refused))
    return f"target {module.target}\n{table(rows)}\n  ops\n{table(ops, indent=4)}"
