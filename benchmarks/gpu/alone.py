"""Compile what attention.py measures: a chain of attention calls, and a loop of mma.sync."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path

from llmir.compiler import iree_compile
from llmir.dialect_ext.registry import get_op, lowerings_of
from llmir.dialect_ext.types import TensorType
from llmir.targets import Target

ROOT = Path(__file__).resolve().parent.parent.parent
CHAIN = 8
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
GROUPS, THREADS, ROUNDS, PRODUCTS = 8448, 256, 256, 8
"""Of the loop: 64 workgroups for each of an H200's 132 multiprocessors."""


def compile_attention(target: Target, output: Path, *, smaller: int) -> None:
    """OUT/attention/<provider>.vmfb and .json: calls each of which asks with the last one's result.

    smaller: what the sequences are divided by, for a try without a GPU.
    """
    output.mkdir(exist_ok=True)
    index = TensorType((None,), "i32")
    types = [
        TensorType((None, HEADS, HEAD_DIM), "f32"),
        TensorType((None, 2, KV_HEADS, 16, HEAD_DIM), "bf16"),
        *(TensorType((None, None), "i32"), index, index, index, index, None),
    ]
    op = get_op("paged_attention")
    call = op.verify(types, {"scale": HEAD_DIM**-0.5, "window": 0})
    done = set()
    for lowering in lowerings_of("paged_attention"):
        refused = lowering.supports(call, target) is not None or lowering.pages != "rows"
        if refused or lowering.provider in done:
            continue
        done.add(lowering.provider)
        names = [n for n, _ in call.present]
        arguments = ", ".join(f"%{n}: {t}" for n, t in call.present)
        kinds = ", ".join(str(t) for _, t in call.present)
        result, rest = call.results[0], ", ".join(f"%{n}" for n in names[1:])
        lines = [
            f"  %y{i + 1} = func.call @op(%{f'y{i}' if i else names[0]}, {rest}) : "
            f"({kinds}) -> {result}"
            for i in range(CHAIN)
        ]
        text = "\n".join(
            [
                "module @m {",
                lowering.emit(call, "op"),
                f"func.func @main({arguments}) -> {result} {{",
                *lines,
                f"  return %y{CHAIN} : {result}",
                "}",
                "}",
            ]
        )
        flags = (*target.flags, *lowering.flags(target))
        file = output / f"{lowering.provider}.vmfb"
        iree_compile.to_module(iree_compile.to_stream(text, flags), flags, file)
        about = {
            "chain": CHAIN,
            "smaller": smaller,
            "heads": HEADS,
            "kv_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "dtypes": [t.dtype for t in types if t is not None],
        }
        file.with_suffix(".json").write_text(json.dumps(about))
        print(f"attention alone: {lowering.provider}", flush=True)


def compile_mma(target: Target, output: Path) -> None:
    """OUT/mma_rate.vmfb and .json, for CUDA."""
    if target.kind != "cuda":
        print("mma_rate: left out, it is for CUDA", flush=True)
        return
    spec = importlib.util.spec_from_file_location("build_gpu", ROOT / "plugins" / "build_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    build_gpu = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = build_gpu
    spec.loader.exec_module(build_gpu)
    source = Path(__file__).with_name("mma_rate.cu")
    with tempfile.TemporaryDirectory(prefix="llmir-mma-") as scratch:
        ptx = Path(scratch) / "mma_rate.ptx"
        build_gpu.build_ptx(build_gpu.Unit("mma_rate", str(source)), ptx)
        count = len(re.findall(r"mma\.sync", ptx.read_text()))
        assert count == PRODUCTS, f"{count} products in the loop's PTX, not {PRODUCTS}"
        flags = (*target.flags, f"--iree-hal-executable-object-search-path={scratch}")
        stream = iree_compile.to_stream(_MMA, flags)
        iree_compile.to_module(stream, flags, output / "mma_rate.vmfb")
    operations = GROUPS * (THREADS // 32) * ROUNDS * PRODUCTS * 2 * 16 * 8 * 16
    (output / "mma_rate.json").write_text(json.dumps({"operations": operations}))
    print("mma_rate", flush=True)


_MMA = f"""module @m {{
"hal.executable.source"() <{{sym_name = "mma", sym_visibility = "private",
    objects = #hal.executable.objects<{{#hal.executable.target<"cuda", "cuda-nvptx-fb"> = [
      #hal.executable.object<{{path = "mma_rate.ptx"}}>]}}>}}> ({{
  "hal.executable.export"() <{{sym_name = "llmir_mma_rate", ordinal = 0 : index,
      layout = #hal.pipeline.layout<constants = 1,
        bindings = [#hal.pipeline.binding<storage_buffer>]>,
      workgroup_size = [{THREADS} : index, 1 : index, 1 : index]}}> ({{
  ^bb0(%device: !hal.device):
    %x = arith.constant {GROUPS} : index
    %one = arith.constant 1 : index
    hal.return %x, %one, %one : index, index, index
  }}, {{}}) : () -> ()
  "hal.executable.source_end"() : () -> ()
}}) : () -> ()
func.func @main() -> tensor<{GROUPS * THREADS}xf32> {{
  %rounds = arith.constant {ROUNDS} : i32
  %y = flow.dispatch @mma::@llmir_mma_rate(%rounds) : (i32) -> tensor<{GROUPS * THREADS}xf32>
  return %y : tensor<{GROUPS * THREADS}xf32>
}}
}}
"""
