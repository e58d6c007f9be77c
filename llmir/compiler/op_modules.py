"""Modules that measure llm ops: each call of a step alone, as its own lowering has it.

    @call_<i>(carrier, shared operands…, CHAIN × rotated operands…) → carrier
        for each of CHAIN:  y = op(carrier, …);  carrier = link(y, carrier)
    @links_<i>(carrier, another like it) → carrier
        CHAIN × link

An op's result goes nowhere, but without its being read IREE would drop the call, and without
an order it would run the calls side by side.  `link` reads one element of y and writes one of
the carrier, an operand of the next call: a dispatch of one workgroup, whose own time
`links_<i>` gives.  It never changes the carrier in fact.  Several calls stand in one function
because calling one takes longer than most ops do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmir.artifact import StepCall
from llmir.compiler import iree_compile
from llmir.dialect_ext.base import Call
from llmir.dialect_ext.registry import find_lowering, get_op
from llmir.dialect_ext.types import TensorType, is_static


def compile_calls(
    calls: Sequence[StepCall], chain: int, flags: Sequence[str], output: Path
) -> None:
    """Compile the functions of all calls to one .vmfb.  Raises CompileError."""
    parts = [_functions(step_call, i, chain) for i, step_call in enumerate(calls)]
    text = "module @ops {\n" + "\n".join(parts) + "\n}\n"
    iree_compile.to_module(iree_compile.to_stream(text, flags), flags, output)


def carrier_of(step_call: StepCall) -> str:
    """The operand that orders the calls: the first that is neither weights nor pages."""
    return next(
        o.name
        for o in step_call.operands
        if o.kind != "parameter" and o.name not in step_call.rotated
    )


def _functions(step_call: StepCall, index: int, chain: int) -> str:
    op = get_op(step_call.op)
    there = {
        o.name: TensorType(tuple(int(d) if d.isdigit() else None for d in o.dims), o.dtype)
        for o in step_call.operands
    }
    call = op.verify([there.get(spec.name) for spec in op.operands], step_call.attrs)
    lowering = find_lowering(step_call.op, step_call.provider, step_call.variant)
    rotated = step_call.rotated
    carrier = carrier_of(step_call)
    shared = [name for name in there if name not in rotated and name != carrier]
    x, y = there[carrier], call.results[0]
    symbol = f"op_{index}"
    arguments = [f"%x_0: {x}", *(f"%{name}: {there[name]}" for name in shared)]
    arguments += [f"%{name}_{k}: {there[name]}" for k in range(chain) for name in rotated]
    body, links = [], []
    for k in range(chain):
        values = {
            **{name: f"%{name}" for name in shared},
            **{name: f"%{name}_{k}" for name in rotated},
            carrier: f"%x_{k}",
        }
        body += _call(call, symbol, values, k)
        body.append(f"%x_{k + 1} = func.call @link_{index}(%y_{k}, %x_{k}) : ({y}, {x}) -> {x}")
        links.append(
            f"%x_{k + 1} = func.call @own_link_{index}(%other, %x_{k}) : ({x}, {x}) -> {x}"
        )
    last = f"return %x_{chain} : {x}"
    return f"""
{lowering.emit(call, symbol)}
{_link(f"link_{index}", x, y)}
{_link(f"own_link_{index}", x, x)}
func.func @call_{index}({", ".join(arguments)}) -> {x} {{
  {_lines([*body, last])}
}}
func.func @links_{index}(%x_0: {x}, %other: {x}) -> {x} {{
  {_lines([*links, last])}
}}"""


def _call(call: Call, symbol: str, values: dict[str, str], k: int) -> list[str]:
    names = [values[name] for name, _ in call.present]
    types = ", ".join(str(t) for _, t in call.present)
    results = ", ".join(map(str, call.results))
    given = f"%y_{k}" if len(call.results) == 1 else f"%y_{k}, %more_{k}"
    return [f"{given} = func.call @{symbol}({', '.join(names)}) : ({types}) -> ({results})"]


def _link(symbol: str, x: TensorType, y: TensorType) -> str:
    """x with its first element written again, after the first of y has been read."""
    sizes, loads = [], []
    for name, t in (("y", y), ("x", x)):
        for dim, size in enumerate(t.shape):
            if not is_static(size):
                sizes.append((f"{name}{dim}", name, dim, t))
    of = {n: [s for s, owner, _, _ in sizes if owner == n] for n in ("x", "y")}
    dims = {n: f"{{{', '.join('%' + s for s in of[n])}}}" if of[n] else "" for n in of}
    measured = [
        line
        for s, owner, dim, t in sizes
        for line in (
            f"%{s}_dim = arith.constant {dim} : index",
            f"%{s} = tensor.dim %{owner}, %{s}_dim : {t}",
        )
    ]
    access = {"y": "readonly", "x": "readwrite"}
    handle = {
        n: f"!iree_tensor_ext.dispatch.tensor<{access[n]}:{t}>" for n, t in (("y", y), ("x", x))
    }
    for i, (s, *_) in enumerate(sizes):
        loads.append(f"%{s}_in = iree_tensor_ext.dispatch.workload.ordinal %{s}_arg, {i} : index")
    for n, t in (("y", y), ("x", x)):
        inner = f"{{{', '.join(f'%{s}_in' for s in of[n])}}}" if of[n] else ""
        zeros, ones = (", ".join([v] * t.rank) for v in ("0", "1"))
        loads += [
            f"%{n}_in = flow.dispatch.tie_shape %{n}_arg : {handle[n]}{inner}",
            f"%{n}_one = iree_tensor_ext.dispatch.tensor.load %{n}_in, offsets = [{zeros}], "
            f"sizes = [{ones}], strides = [{ones}] : {handle[n]}{inner} -> tensor<1x{t.dtype}>",
        ]
    zeros, ones = (", ".join([v] * x.rank) for v in ("0", "1"))
    inner = f"{{{', '.join(f'%{s}_in' for s in of['x'])}}}" if of["x"] else ""
    never = "60000.0" if y.dtype.startswith(("f", "b")) else "-60000"
    compare = "arith.cmpf oeq" if y.dtype.startswith(("f", "b")) else "arith.cmpi eq"
    add, one = ("addf", "1.0") if x.dtype.startswith(("f", "b")) else ("addi", "1")
    listed = ", ".join(f"%{s}" for s, *_ in sizes)
    index_types = ", ".join(["index"] * len(sizes))
    handles = [f"%y_arg: {handle['y']}"]
    size_args = [f"%{s}_arg: index" for s, *_ in sizes]
    handles = [*handles, f"%x_arg: {handle['x']}", *size_args]
    return f"""
func.func private @{symbol}(%y: {y}, %x: {x}) -> {x} {{
  {_lines(measured)}
  %out = flow.dispatch.workgroups[{listed}](%y, %x, {listed})
      : ({y}{dims["y"]}, {x}{dims["x"]}, {index_types}) -> %x{dims["x"]} =
  ({", ".join(handles)}) {{
    {_lines(loads, 4)}
    %linked = linalg.generic {{
        indexing_maps = [affine_map<(i) -> (i)>, affine_map<(i) -> (i)>],
        iterator_types = ["parallel"]}}
        ins(%y_one : tensor<1x{y.dtype}>) outs(%x_one : tensor<1x{x.dtype}>) {{
    ^bb0(%from: {y.dtype}, %to: {x.dtype}):
      %never = arith.constant {never} : {y.dtype}
      %one = arith.constant {one} : {x.dtype}
      %is_never = {compare}, %from, %never : {y.dtype}
      %other = arith.{add} %to, %one : {x.dtype}
      %same = arith.select %is_never, %other, %to : {x.dtype}
      linalg.yield %same : {x.dtype}
    }} -> tensor<1x{x.dtype}>
    iree_tensor_ext.dispatch.tensor.store %linked, %x_in, offsets = [{zeros}],
        sizes = [{ones}], strides = [{ones}] : tensor<1x{x.dtype}> -> {handle["x"]}{inner}
    flow.return
  }} count({", ".join(f"%{s}_count: index" for s, *_ in sizes)}) -> (index, index, index) {{
    %single = arith.constant 1 : index
    flow.return %single, %single, %single : index, index, index
  }}
  return %out : {x}
}}"""


def _lines(lines: Sequence[str], columns: int = 2) -> str:
    return ("\n" + " " * columns).join(lines)
