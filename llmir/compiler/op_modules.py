"""Modules of llm ops alone, each call of a step as its own lowering has it.

`compile_alone` makes plain functions, for `llmir verify`; `compile_calls` those that measure:

    @call_<i>(carrier, shared operands…, CHAIN × rotated operands…) → carrier
        for each of CHAIN:  y = op(carrier, …);  carrier = link(y, carrier)
    @links_<i>(carrier, carrier) → carrier
        CHAIN × link, which reads the carrier in the place of y

An op's result goes nowhere, but without its being read IREE would drop the call, and without
an order it would run the calls side by side.  `link` reads one element of y and writes one of
the carrier, an operand of the next call: a dispatch of one workgroup, whose own time
`links_<i>` gives.  It never changes the carrier in fact; both functions copy it once.
Several calls stand in one function because calling one takes longer than most ops do.
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


def compile_alone(calls: Sequence[StepCall], flags: Sequence[str], output: Path) -> None:
    """Compile a module with a function `call_<i>` of each call: its operands → its results.

    Raises CompileError, also for a lowering that this llmir does not have.
    """
    parts = []
    for i, step_call in enumerate(calls):
        call = typed(step_call)
        lowering = find_lowering(step_call.op, step_call.provider, step_call.variant)
        arguments = ", ".join(f"%{name}: {t}" for name, t in call.present)
        results = [f"%y_{k}" for k in range(len(call.results))]
        types = ", ".join(map(str, call.results))
        names = ", ".join(f"%{name}" for name, _ in call.present)
        given = ", ".join(str(t) for _, t in call.present)
        parts.append(f"""
{lowering.emit(call, f"op_{i}")}
func.func @call_{i}({arguments}) -> ({types}) {{
  {", ".join(results)} = func.call @op_{i}({names}) : ({given}) -> ({types})
  return {", ".join(results)} : {types}
}}""")
    text = "module @ops {\n" + "\n".join(parts) + "\n}\n"
    iree_compile.to_module(iree_compile.to_stream(text, flags), flags, output)


def typed(step_call: StepCall) -> Call:
    """The call with the types of its operands and results.  Raises CompileError."""
    op = get_op(step_call.op)
    there = {
        o.name: TensorType(tuple(int(d) if d.isdigit() else None for d in o.dims), o.dtype)
        for o in step_call.operands
    }
    return op.verify([there.get(spec.name) for spec in op.operands], step_call.attrs)


def carrier_of(step_call: StepCall) -> str:
    """The operand that orders the calls: the first that is neither weights nor pages."""
    return next(
        o.name
        for o in step_call.operands
        if o.kind != "parameter" and o.name not in step_call.rotated
    )


def _functions(step_call: StepCall, index: int, chain: int) -> str:
    call = typed(step_call)
    there = dict(call.present)
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
        y_k = "%x_0" if k else "%same"
        links.append(f"%x_{k + 1} = func.call @own_link_{index}({y_k}, %x_{k}) : ({x}, {x}) -> {x}")
    last = f"return %x_{chain} : {x}"
    return f"""
{lowering.emit(call, symbol)}
{_link(f"link_{index}", x, y)}
{_link(f"own_link_{index}", x, x)}
func.func @call_{index}({", ".join(arguments)}) -> {x} {{
  {_lines([*body, last])}
}}
func.func @links_{index}(%x_0: {x}, %same: {x}) -> {x} {{
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
    tensors = {"y": y, "x": x}
    sizes = [
        (f"{name}{dim}", name, dim)
        for name, t in tensors.items()
        for dim, size in enumerate(t.shape)
        if not is_static(size)
    ]

    def dims(name: str, suffix: str = "") -> str:
        own = [f"%{size}{suffix}" for size, owner, _ in sizes if owner == name]
        return f"{{{', '.join(own)}}}" if own else ""

    measured, loads = [], []
    for i, (size, name, dim) in enumerate(sizes):
        measured.append(f"%{size}_dim = arith.constant {dim} : index")
        measured.append(f"%{size} = tensor.dim %{name}, %{size}_dim : {tensors[name]}")
        loads.append(
            f"%{size}_in = iree_tensor_ext.dispatch.workload.ordinal %{size}_arg, {i} : index"
        )
    handle = {
        name: f"!iree_tensor_ext.dispatch.tensor<{access}:{tensors[name]}>"
        for name, access in (("y", "readonly"), ("x", "readwrite"))
    }
    for name, t in tensors.items():
        inner = f"{handle[name]}{dims(name, '_in')}"
        loads.append(f"%{name}_in = flow.dispatch.tie_shape %{name}_arg : {inner}")
        loads.append(
            f"%{name}_one = iree_tensor_ext.dispatch.tensor.load %{name}_in, {_first(t)} "
            f": {inner} -> tensor<1x{t.dtype}>"
        )
    compare, never = ("cmpi eq", "-60000") if y.dtype == "i32" else ("cmpf oeq", "60000.0")
    add, one = ("addi", "1") if x.dtype == "i32" else ("addf", "1.0")
    listed = ", ".join(f"%{size}" for size, *_ in sizes)
    size_args = ", ".join(f"%{size}_arg: index" for size, *_ in sizes)
    size_types = ", ".join("index" for _ in sizes)
    return f"""
func.func private @{symbol}(%y: {y}, %x: {x}) -> {x} {{
  {_lines(measured)}
  %out = flow.dispatch.workgroups[{listed}](%y, %x, {listed})
      : ({y}{dims("y")}, {x}{dims("x")}, {size_types}) -> %x{dims("x")} =
  (%y_arg: {handle["y"]}, %x_arg: {handle["x"]}, {size_args}) {{
    {_lines(loads, 4)}
    %linked = linalg.generic {{
        indexing_maps = [affine_map<(i) -> (i)>, affine_map<(i) -> (i)>],
        iterator_types = ["parallel"]}}
        ins(%y_one : tensor<1x{y.dtype}>) outs(%x_one : tensor<1x{x.dtype}>) {{
    ^bb0(%from: {y.dtype}, %to: {x.dtype}):
      %never = arith.constant {never} : {y.dtype}
      %one = arith.constant {one} : {x.dtype}
      %is_never = arith.{compare}, %from, %never : {y.dtype}
      %other = arith.{add} %to, %one : {x.dtype}
      %same = arith.select %is_never, %other, %to : {x.dtype}
      linalg.yield %same : {x.dtype}
    }} -> tensor<1x{x.dtype}>
    iree_tensor_ext.dispatch.tensor.store %linked, %x_in, {_first(x)}
        : tensor<1x{x.dtype}> -> {handle["x"]}{dims("x", "_in")}
    flow.return
  }} count({", ".join(f"%{size}_count: index" for size, *_ in sizes)}) -> (index, index, index) {{
    %single = arith.constant 1 : index
    flow.return %single, %single, %single : index, index, index
  }}
  return %out : {x}
}}"""


def _first(t: TensorType) -> str:
    """The slice that is a tensor's first element."""
    zeros, ones = (", ".join([v] * t.rank) for v in ("0", "1"))
    return f"offsets = [{zeros}], sizes = [{ones}], strides = [{ones}]"


def _lines(lines: Sequence[str], columns: int = 2) -> str:
    return ("\n" + " " * columns).join(lines)
