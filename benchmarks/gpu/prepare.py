"""Compile what benchmarks/gpu/run.py takes to a GPU machine: modules without weights.

    python benchmarks/gpu/prepare.py OUT [--target cuda:sm_80] [--tiny]

OUT/<shape>-<weights>-<provider>.vmfb and .json, the parameters that it reads and its limits;
OUT/attention and OUT/mma_rate.vmfb, of alone.py;
OUT/ops/<case>.vmfb and .npz, one llm op each with operands and the reference's results.
--tiny: a shape of two small layers in the place of Llama-3.1-8B's, to try the run without a GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import alone
import numpy as np

from llmir.artifact import Limits
from llmir.compiler import build, iree_compile
from llmir.compiler.activations import precision_of, role_of
from llmir.compiler.export import export_step, kv_layout
from llmir.config import ModelSpec
from llmir.dialect_ext.registry import get_op, lowerings_of, op_names
from llmir.dialect_ext.types import TensorType
from llmir.formats import QuantLayout, packed
from llmir.models.layers import MatrixForm
from llmir.passes.manager import PassManager
from llmir.targets import Target, resolve

LLAMA_8B = ModelSpec(
    architecture="llama",
    name="Llama-3.1-8B shape",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    sliding_windows=(None,) * 32,
)
TINY = ModelSpec(
    architecture="llama",
    name="tiny shape",
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    sliding_windows=(None,) * 2,
)
WEIGHTS = ("int4", "bf16")
PROVIDERS = ("kernels", "portable")
LIMITS = Limits(max_model_len=4096, max_num_batched_tokens=2048, max_num_seqs=32)
_INT4 = QuantLayout(bits=4, group_size=128, zero_point=8, has_mins=False)
_PARAMETER = re.compile(r'#flow\.parameter\.named<"[^"]*"::"([^"]+)">\s*:\s*tensor<([^>]+)>')


@dataclass(frozen=True)
class Parameter:
    """name, elements as MLIR has them ("4096x32xf32"), and the packed format; "" if it has none."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    packed: str


def form_of(name: str, weights: str, activations: str) -> MatrixForm:
    """Random weights of either kind: int4 in groups of 128 with float32 scales, or bf16."""
    if weights == "bf16":
        return MatrixForm(dtype="bf16", activations="bf16")
    precision = precision_of(role_of(name, False), activations, "int4", bits=4)
    return MatrixForm(layout=_INT4, activations=precision)


def compile_step(
    spec: ModelSpec, weights: str, target: Target, output: Path, activations: str
) -> None:
    """Both providers' modules of a shape: OUT/<shape>-<weights>-<provider>.vmfb and .json."""
    # Integers in 32 bits of activations where the kernels have no integers; portable code has
    # float32 only.
    kv = kv_layout(spec, "bf16", 16)
    manager = PassManager(print_ir_after=())
    for provider in PROVIDERS:
        start = time.perf_counter()
        chosen = "f32" if provider == "portable" else activations

        def form(name: str, chosen: str = chosen) -> MatrixForm:
            if chosen == "f32" and weights == "bf16":
                return MatrixForm(dtype="bf16", activations="f32")
            return form_of(name, weights, chosen)

        llm_ir = build._to_llm_ir(export_step(spec, form, kv, LIMITS), manager)
        names = [n for n in op_names() if any(x.provider == "portable" for x in lowerings_of(n))]
        priority = {n: ["portable"] for n in names} if provider == "portable" else {}
        lowered = build._lower(llm_ir, target, "all", priority, manager, kv)
        recipes = {recipe.name: recipe.format for recipe in lowered.packed}
        stem = f"{'8b' if spec is LLAMA_8B else 'tiny'}-{weights}-{provider}"
        stream = iree_compile.to_stream(lowered.mlir, lowered.flags)
        iree_compile.to_module(stream, lowered.flags, output / f"{stem}.vmfb")
        parameters = []
        for name, text in sorted(set(_PARAMETER.findall(lowered.mlir))):
            *dims, dtype = text.split("x")
            parameters.append(
                asdict(Parameter(name, tuple(map(int, dims)), dtype, recipes.get(name, "")))
            )
        sections = {
            name: packed.FORMATS[name].section_bytes(128)
            for name in set(recipes.values()) - {""}
            if packed.FORMATS[name].section
        }
        about = {
            "model": spec.to_json(),
            "provider": provider,
            "weights": weights,
            "target": target.name,
            "page_size": kv.page_size,
            "page_shape": list(kv.page_shape),
            "limits": asdict(LIMITS),
            "uses": [asdict(use) for use in lowered.providers],
            "parameters": parameters,
            "section_bytes": sections,
        }
        (output / f"{stem}.json").write_text(json.dumps(about))
        print(f"{stem}: {time.perf_counter() - start:.0f} s", flush=True)


# -- single ops, with operands and what the reference makes of them --------------------------------


@dataclass
class Case:
    """A call of an op.  batches: how many of its tokens to give it, each time the first ones."""

    name: str
    op: str
    types: list[TensorType | None]
    attrs: dict[str, Any]
    operands: list[np.ndarray | None]
    tolerance: float
    batches: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()  # the operands with a row for each token


def cases() -> list[Case]:
    """Every kernel of the matmuls' and the rows' units; attention and pages."""
    rng = np.random.default_rng(0)
    found = []
    tokens = 130
    x = rng.standard_normal((tokens, 384)).astype(np.float32)
    residual = rng.standard_normal((tokens, 160)).astype(np.float32)
    norm = rng.uniform(0.5, 1.5, 384).astype(np.float32)
    f32, i8 = (lambda *dims: TensorType(dims, "f32")), (lambda n: TensorType((n,), "i8"))
    for name in ("q4_0", "q4_1", "q8_0", "int8", "int4_g128", "int4_g32_zp", "bf16"):
        weight = random_packed(name, 160, 384, rng)
        for activations, tolerance in (("bf16", 5e-4), ("f32", 2e-5)):
            found.append(
                Case(
                    f"matmul_{name}_{activations}",
                    "packed_matmul",
                    [f32(None, 384), i8(len(weight)), f32(384), None, f32(None, 160)],
                    {"format": name, "activations": activations, "rows": 160, "eps": 1e-5},
                    [x, weight, norm, None, residual],
                    tolerance,
                    (1, 8, 33, 130),
                    (0, 4),
                )
            )
    found.append(
        Case(
            "rms_norm", "rms_norm", [f32(None, 384), f32(384)], {"eps": 1e-5}, [x, norm], 1e-5,
            (1, 130), (0,),
        )
    )  # fmt: skip
    found.append(Case("silu_mul", "silu_mul", [f32(None, 384)] * 2, {}, [x, x[::-1].copy()], 1e-5))
    for q_heads, heads, dim in ((32, 8, 128), (9, 3, 64)):
        found.append(attention_case(q_heads, heads, dim, rng))
    return found


def attention_case(q_heads: int, heads: int, dim: int, rng: np.random.Generator) -> Case:
    """A sequence of 200 positions of which the last 40 are asked, and one of 5."""
    lengths, asked = (200, 5), (40, 5)
    columns = -(-max(lengths) // 16)
    pages = sum(-(-n // 16) for n in lengths) + 1
    order = rng.permutation(np.arange(1, pages)).astype(np.int32)
    table = np.zeros((2, columns), np.int32)
    table[0], table[1, :1] = order[:columns], order[columns:]
    kv = rng.standard_normal((pages, 2, heads, 16, dim)).astype(np.float32)
    kv = (kv.view(np.uint32) & 0xFFFF0000).view(np.float32)  # bf16 numbers
    token_seq = np.repeat(np.arange(2, dtype=np.int32), asked)
    positions = np.concatenate(
        [np.arange(n - a, n) for n, a in zip(lengths, asked, strict=True)]
    ).astype(np.int32)
    q = rng.standard_normal((sum(asked), q_heads, dim)).astype(np.float32)
    index = TensorType((None,), "i32")
    return Case(
        f"attention_{q_heads}_{heads}_{dim}",
        "paged_attention",
        [
            TensorType((None, q_heads, dim), "f32"),
            TensorType((None, 2, heads, 16, dim), "bf16"),
            TensorType((None, None), "i32"),
            *[index] * 4,
            None,
        ],
        {"scale": dim**-0.5, "window": 0},
        [
            *(q, kv, table, token_seq, positions, np.array([0, *np.cumsum(asked)], np.int32)),
            np.array(lengths, np.int32),
            None,
        ],
        2e-4,
        (3, 45),
        (0, 3, 4),
    )


def random_packed(name: str, rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """int8 bytes of a packed matrix whose scales and minima are sound numbers."""
    form = packed.FORMATS[name]
    if form.is_float:
        numbers = rng.standard_normal(rows * cols).astype(np.float32)
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.int8)
    tiles, sections = -(-rows // packed.TILE_ROWS), form.num_sections(cols)
    raw = rng.integers(0, 256, (tiles, sections, form.section_bytes(cols)), dtype=np.uint8)
    at = 0
    for part in form.header:
        numbers = rng.uniform(0.01, 0.1, (tiles, sections, packed.TILE_ROWS * part.count))
        raw[:, :, at : at + part.num_bytes] = numbers.astype(part.dtype).view(np.uint8)
        at += part.num_bytes
    return raw.reshape(-1).view(np.int8)


def compile_case(case: Case, target: Target, output: Path) -> str:
    """OUT/ops/<case>.vmfb and .npz; the provider that it got, or why it got none."""
    op = get_op(case.op)
    call = op.verify(case.types, case.attrs)
    refused = []
    for lowering in lowerings_of(case.op):
        reason = lowering.supports(call, target)
        if reason is None and lowering.pages != "rows":
            reason = "its pages are in another order"
        if reason is None:
            break
        refused.append(f"{lowering.provider}: {reason}")
    else:
        return f"left out: {'; '.join(refused)}"
    names = [n for n, _ in call.present]
    arguments = ", ".join(f"%{n}: {t}" for n, t in call.present)
    results = ", ".join(map(str, call.results))
    types = ", ".join(str(t) for _, t in call.present)
    text = f"""module @m {{
{lowering.emit(call, "op")}
func.func @main({arguments}) -> ({results}) {{
  %y = func.call @op({", ".join("%" + n for n in names)}) : ({types}) -> ({results})
  return %y : {results}
}}
}}"""
    flags = (*target.flags, *lowering.flags(target))
    iree_compile.to_module(iree_compile.to_stream(text, flags), flags, output / f"{case.name}.vmfb")
    defaults = {a.name: a.default for a in op.attributes if a.default is not None}
    wanted = op.reference(*case.operands, **{**defaults, **case.attrs})
    kept = {f"operand_{i}": a for i, a in enumerate(case.operands) if a is not None}
    dtypes = [t.dtype for t in case.types if t is not None]
    np.savez_compressed(
        output / f"{case.name}.npz",
        wanted=wanted,
        about=json.dumps(
            {
                "dtypes": dtypes,
                "tolerance": case.tolerance,
                "batches": case.batches,
                "tokens": case.tokens,
                "provider": lowering.provider,
            }
        ),
        **kept,
    )
    return lowering.provider


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile what run.py measures.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--target", default="cuda:sm_80")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--activations", default="auto", help="of int4 weights, as in compile")
    options = parser.parse_args()
    target, spec = resolve(options.target), TINY if options.tiny else LLAMA_8B
    (options.output / "ops").mkdir(parents=True, exist_ok=True)
    for case in cases():
        print(f"{case.name}: {compile_case(case, target, options.output / 'ops')}", flush=True)
    alone.compile_mma(target, options.output)
    alone.compile_attention(target, options.output / "attention", smaller=32 if options.tiny else 1)
    for weights in WEIGHTS:
        compile_step(spec, weights, target, options.output, options.activations)
    return 0


if __name__ == "__main__":
    sys.exit(main())
