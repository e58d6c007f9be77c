"""What `llmir verify` says: a Markdown report for people, a JSON document for programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from llmir.bench.report import aligned, hardware, heading, versions
from llmir.verify.compare import PairResult
from llmir.verify.divergence import Divergence, FirstDivergence
from llmir.verify.latency import Times
from llmir.verify.ops import OpRow
from llmir.verify.run import Certificate
from llmir.verify.transformers_side import transformers_versions


def document(certificate: Certificate, command: str) -> dict[str, Any]:
    """The JSON document.  Numbers that are not finite are null, as JSON has none."""
    options = certificate.options
    manifest = certificate.artifact.manifest
    before = options.against.manifest if options.against else None
    return _finite(
        {
            "passed": certificate.passed,
            "hardware": hardware(),
            "versions": {
                **versions(),
                **(transformers_versions() if options.transformers else {}),
            },
            "command": command,
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "artifact": _artifact(manifest),
            "against": _artifact(before) if before else None,
            "sides": [
                {"name": s.name, "about": s.about, "is_exact": s.is_exact}
                for s in certificate.sides
            ],
            "prompts": [
                {"name": p.name, "num_tokens": len(p.token_ids)} for p in certificate.prompts
            ],
            "max_tokens": options.max_tokens,
            "pairs": [_pair(pair) for pair in certificate.pairs],
            "ops": None
            if certificate.ops is None
            else [{**dataclasses.asdict(r), "is_wrong": r.is_wrong} for r in certificate.ops],
            "times": {
                name: [{**dataclasses.asdict(t), "ratio": t.ratio} for t in rows]
                for name, rows in certificate.times.items()
            },
            "ops_missing": list(certificate.ops_missing),
            "notes": certificate.notes,
        }
    )


def _artifact(manifest: Any) -> dict[str, Any]:
    return {
        "model": manifest.model.name,
        "source": manifest.source,
        "cache_key": manifest.cache_key,
        "targets": [m.target for m in manifest.modules],
        "options": dict(manifest.options),
        "kv_dtype": manifest.kv.dtype,
        "compiled_with": dict(manifest.tools),
        "llmir_version": manifest.llmir_version,
    }


def _pair(pair: PairResult) -> dict[str, Any]:
    def divergence(found: FirstDivergence | None) -> dict[str, Any] | None:
        if found is None:
            return None
        return {**dataclasses.asdict(found), "is_tie": pair.is_tie(found)}

    return {
        "reference": pair.reference,
        "other": pair.other,
        "passed": pair.passed,
        "reasons": pair.reasons,
        **_numbers(pair.forced),
        "first_divergence": divergence(pair.first_divergence),
        "thresholds": dataclasses.asdict(pair.thresholds),
        "prompts": [
            {
                "name": row.name,
                "prompt_tokens": row.prompt_tokens,
                "answer_tokens": row.answer_tokens,
                **_numbers(row.forced),
                "first_divergence": divergence(row.divergence),
            }
            for row in pair.rows
        ],
    }


def _numbers(found: Divergence) -> dict[str, Any]:
    return {
        "num_positions": found.num_positions,
        "num_not_finite": found.num_not_finite,
        "max_abs_logit_diff": found.max_abs_difference,
        "rms_logit_diff": found.rms_difference,
        "mean_kl": found.mean_kl,
        "kl_p99": found.kl_p99,
        "top1_agreement": found.agreement,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def markdown(certificate: Certificate, document: Mapping[str, Any]) -> str:
    """The report, from the certificate and its document."""
    verdict = "PASS" if certificate.passed else "FAIL"
    listed = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    parts = [
        f"# {verdict}: {document['artifact']['model']} on "
        + ", ".join(side.name for side in certificate.sides),
        heading(document["hardware"]),
        f"Date: {document['date']}. Versions: {listed}.  \n{_made_of(document)}  \n"
        f"Command: `{document['command']}`",
        _sides(certificate),
        _pairs(certificate.pairs),
        *(_prompts(pair) for pair in certificate.pairs),
    ]
    if certificate.ops is not None:
        parts.append(_ops(certificate.ops))
    parts += [f"## {name}\n\n{_times(rows)}" for name, rows in certificate.times.items()]
    if certificate.notes:
        parts.append("## Not looked at\n\n" + "\n".join(f"- {n}" for n in certificate.notes))
    return "\n\n".join(parts) + "\n"


def _made_of(document: Mapping[str, Any]) -> str:
    texts = []
    for name in ("artifact", "against"):
        found = document[name]
        if found is not None:
            tools = ", ".join(f"{t} {v}" for t, v in found["compiled_with"].items())
            options = found["options"]
            texts.append(
                f"{name.capitalize()}: `{found['source']}`, weights {options.get('weights')}, "
                f"activations {options.get('activations')}, KV {found['kv_dtype']}, compiled by "
                f"llmir {found['llmir_version']} with {tools}."
            )
    return "  \n".join(texts)


def _sides(certificate: Certificate) -> str:
    lines = [
        f"- {side.name}: {side.about}; "
        + ("rounds nothing but weights" if side.is_exact else "may round activations or KV")
        for side in certificate.sides
    ]
    return "\n".join(lines)


def _pairs(pairs: Sequence[PairResult]) -> str:
    rows = [
        [
            pair.reference,
            pair.other,
            "PASS" if pair.passed else "FAIL",
            str(pair.forced.num_positions),
            _against(pair.forced.max_abs_difference, pair.thresholds.max_logit_diff),
            _against(pair.forced.mean_kl, pair.thresholds.max_kl),
            f"{100 * pair.forced.agreement:.2f} % (≥ {100 * pair.thresholds.min_top1:g} %)",
            _divergence(pair, pair.first_divergence),
            f"{pair.thresholds.margin:g}",
        ]
        for pair in pairs
    ]
    header = [
        *("reference", "other", "verdict", "positions", "largest logit difference", "mean KL"),
        *("top-1", "first divergence, margin", "a tie below"),
    ]
    reasons = [
        f"- {pair.other} against {pair.reference}: {reason}"
        for pair in pairs
        for reason in pair.reasons
    ]
    return "\n\n".join(filter(None, [aligned(header, rows), "\n".join(reasons)]))


def _against(value: float, limit: float) -> str:
    return f"{value:.2e} (≤ {limit:g})"


def _divergence(pair: PairResult, found: FirstDivergence | None) -> str:
    if found is None:
        return "none"
    tie = ", a tie" if pair.is_tie(found) else ""
    same = "; both choose the same when forced" if found.forced_agrees else ""
    return f"{found.prompt}, token {found.position}, {found.margin:.2g}{tie}{same}"


def _prompts(pair: PairResult) -> str:
    rows = [
        [
            row.name,
            str(row.prompt_tokens),
            str(row.answer_tokens),
            f"{row.forced.max_abs_difference:.2e}",
            f"{row.forced.mean_kl:.2e}",
            f"{100 * row.forced.agreement:.1f} %",
            _divergence(pair, row.divergence),
        ]
        for row in pair.rows
    ]
    header = [
        *("prompt", "tokens", "answer", "largest logit difference", "mean KL", "top-1"),
        "first divergence, margin",
    ]
    return f"## {pair.other} against {pair.reference}\n\n{aligned(header, rows)}"


def _ops(rows: Sequence[OpRow]) -> str:
    wrong = [row for row in rows if row.is_wrong]
    if wrong:
        named = "; ".join(f"llm.{r.op} ({r.label}) by {_provider(r)} on {r.side}" for r in wrong)
        said = f"At fault: {named}."
    else:
        said = (
            "Each op alone is what it is defined to be. What parts the sides is how they round, or "
            "what stands between the ops."
        )
    table = aligned(
        ["side", "part", "op", "provider", "×", "error", "allowed", ""],
        [
            [
                r.side,
                r.label,
                r.op,
                _provider(r),
                str(r.count),
                f"{r.error:.1e}",
                f"{r.limit:.1e}",
                "WRONG" if r.is_wrong else "",
            ]
            for r in rows
        ],
    )
    return f"## Ops alone, beside their definitions in numpy\n\n{said}\n\n{table}"


def _provider(row: OpRow) -> str:
    return f"{row.provider}/{row.variant}".rstrip("/")


def _times(rows: Sequence[Times]) -> str:
    def cell(value: float | None, unit: str) -> str:
        return "" if value is None else f"{value:.3g} {unit}"

    lines = [
        [
            t.what,
            cell(t.before, t.unit),
            cell(t.after, t.unit),
            "" if t.ratio is None else f"{t.ratio:.2f}",
        ]
        for t in rows
    ]
    return aligned(["", "before", "after", "after ÷ before"], lines)
