"""The portable lowering of llm.topk: the form that every target compiles, with no long loop.

A number that k others come before is not wanted.  So if the largest numbers of k groups come
before a group's own largest, nothing of that group is wanted: k groups are left, and of their
numbers groups are made again, until they are some hundreds.  How many come before a number is then
its place.  A number comes before those that are less, and before equal ones of higher ids: no two
have one place.

Everything is an all-parallel generic whose body loops over some hundreds of numbers: a GPU's
thread waits for each.

Shape legend: L rows, V elements of a row; a list is two tensors [L, count], values and ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llmir.dialect_ext.base import Call
from llmir.dialect_ext.types import TensorType, is_static

_GROUPS_PER_K, _LEFT_PER_K, _LEAST = 8, 12, 64
_CONSTANTS = """\
    %first = arith.constant 0 : index
    %step = arith.constant 1 : index
    %zero = arith.constant 0 : i32
    %zero_f32 = arith.constant 0.0 : f32
    %one = arith.constant 1 : i32
    %nobody = arith.constant 0x7FFFFFFF : i32
    %lowest = arith.constant 0xFF800000 : f32
    %infinite = arith.constant 0x7F800000 : f32
    %nan = arith.constant 0x7FC00000 : f32"""


def emit_topk(call: Call, symbol: str) -> str:
    """Lowering.emit of it."""
    x, k = call.type_of("x"), int(call.attrs["k"])
    body = _Body(call)
    left = _Numbers("x", "", int(x.shape[1] or 0))
    while left.count > max(_LEFT_PER_K * k, _LEAST):
        size = -(-left.count // max(_GROUPS_PER_K * k, _LEAST))
        most = body.largest_of_groups(left, size)
        left = body.groups(body.first_places(most, k), left, size, k)
    found = body.groups(body.first_places(left, k), left, 1, k)
    weights = body.weights(found)
    values = body.unless_nan(found.values, weights, "%nan", "f32", k)
    ids = body.unless_nan(found.ids, weights, "%none", "i32", k)
    lines = "\n".join(body.lines)
    return f"""
{call.signature(symbol)} {{
  %c0 = arith.constant 0 : index
  %l_size = tensor.dim %x, %c0 : {x}
{lines}
  return %{values}, %{ids}, %{weights} : {", ".join(map(str, call.results))}
}}
"""


@dataclass(frozen=True, slots=True)
class _Numbers:
    """values, ids: tensors [L, count].  No ids: the numbers are the row, and an id is a place."""

    values: str
    ids: str
    count: int


@dataclass(slots=True)
class _Body:
    """Writes the generics of a lowering, one after the other; a method returns what it makes."""

    call: Call
    lines: list[str] = field(default_factory=list)

    def largest_of_groups(self, left: _Numbers, size: int) -> _Numbers:
        """Of each `size` numbers in a row, the one that comes before the others."""
        groups = -(-left.count // size)
        values, ids = self._generic(
            {"f32": groups, "i32": groups},
            f"""
    %size = arith.constant {size} : index
    %count = arith.constant {left.count} : index
    %begin = arith.muli %i, %size : index
    %far = arith.addi %begin, %size : index
    %end = arith.minsi %far, %count : index
    %best:2 = scf.for %v = %begin to %end step %step
        iter_args(%most = %lowest, %most_id = %nobody) -> (f32, i32) {{
      {self._read("e", "v", left)}
      {_comes_before("e", "most")}
      %value = arith.select %e_before_most, %e, %most : f32
      %id = arith.select %e_before_most, %e_id, %most_id : i32
      scf.yield %value, %id : f32, i32
    }}
    linalg.yield %best#0, %best#1 : f32, i32""",
        )
        return _Numbers(values, ids, groups)

    def first_places(self, of: _Numbers, k: int) -> str:
        """i32 [L, k]: where the number is that none, one, two, … come before."""
        (places,) = self._generic(
            {"i32": of.count},
            f"""
    %count = arith.constant {of.count} : index
    {self._read("mine", "i", of)}
    %before = scf.for %v = %first to %count step %step iter_args(%so_far = %zero) -> (i32) {{
      {self._read("e", "v", of)}
      {_comes_before("e", "mine")}
      %more = arith.select %e_before_mine, %one, %zero : i32
      %now = arith.addi %so_far, %more : i32
      scf.yield %now : i32
    }}
    linalg.yield %before : i32""",
        )
        (found,) = self._generic(
            {"i32": k},
            f"""
    %count = arith.constant {of.count} : index
    %wanted = arith.index_cast %i : index to i32
    %where = scf.for %v = %first to %count step %step iter_args(%so_far = %zero) -> (i32) {{
      %place = tensor.extract %{places}[%l, %v] : {self._type("i32", of.count)}
      %v_32 = arith.index_cast %v : index to i32
      %is_it = arith.cmpi eq, %place, %wanted : i32
      %now = arith.select %is_it, %v_32, %so_far : i32
      scf.yield %now : i32
    }}
    linalg.yield %where : i32""",
        )
        return found

    def groups(self, chosen: str, of: _Numbers, size: int, k: int) -> _Numbers:
        """The numbers of k groups; past the end -inf, which comes after all that are there."""
        values, ids = self._generic(
            {"f32": k * size, "i32": k * size},
            f"""
    %size = arith.constant {size} : index
    %last = arith.constant {of.count - 1} : index
    %far_away = arith.constant 0x40000000 : i32
    %j = arith.divui %i, %size : index
    %in_group = arith.remui %i, %size : index
    %group_32 = tensor.extract %{chosen}[%l, %j] : {self._type("i32", k)}
    %group = arith.index_cast %group_32 : i32 to index
    %begin = arith.muli %group, %size : index
    %at = arith.addi %begin, %in_group : index
    %is_there = arith.cmpi sle, %at, %last : index
    %v = arith.minsi %at, %last : index
    {self._read("e", "v", of)}
    %i_32 = arith.index_cast %i : index to i32
    %id_after_all = arith.addi %i_32, %far_away : i32
    %value = arith.select %is_there, %e, %lowest : f32
    %id = arith.select %is_there, %e_id, %id_after_all : i32
    linalg.yield %value, %id : f32, i32""",
        )
        return _Numbers(values, ids, k * size)

    def weights(self, found: _Numbers) -> str:
        """f32 [L]: Σ e^(x - largest), of about √V numbers at a time; NaN as of llm.topk."""
        x = self.call.type_of("x")
        columns = int(x.shape[1] or 0)
        size = max(1, math.isqrt(columns))
        groups = -(-columns // size)
        read_largest = f"""%most = tensor.extract %{found.values}[%l, %first] : \
{self._type("f32", found.count)}"""
        (sums,) = self._generic(
            {"f32": groups},
            f"""
    {read_largest}
    %size = arith.constant {size} : index
    %count = arith.constant {columns} : index
    %begin = arith.muli %i, %size : index
    %far = arith.addi %begin, %size : index
    %end = arith.minsi %far, %count : index
    %sum, %bad = scf.for %v = %begin to %end step %step
        iter_args(%so_far = %zero_f32, %bad_so_far = %zero) -> (f32, i32) {{
      %e = tensor.extract %x[%l, %v] : {x}
      %less = arith.subf %e, %most : f32
      %weight = math.exp %less : f32
      %sum_now = arith.addf %so_far, %weight : f32
      %is_nan = arith.cmpf uno, %e, %e : f32
      %bad_now = arith.select %is_nan, %one, %bad_so_far : i32
      scf.yield %sum_now, %bad_now : f32, i32
    }}
    %no_nan = arith.cmpi eq, %bad, %zero : i32
    %r = arith.select %no_nan, %sum, %nan : f32
    linalg.yield %r : f32""",
        )
        (weights,) = self._generic(
            {"f32": 0},
            f"""
    {read_largest}
    %count = arith.constant {groups} : index
    %sum = scf.for %v = %first to %count step %step iter_args(%so_far = %zero_f32) -> (f32) {{
      %e = tensor.extract %{sums}[%l, %v] : {self._type("f32", groups)}
      %now = arith.addf %so_far, %e : f32
      scf.yield %now : f32
    }}
    %size = math.absf %most : f32
    %finite = arith.cmpf olt, %size, %infinite : f32
    %r = arith.select %finite, %sum, %nan : f32
    linalg.yield %r : f32""",
        )
        return weights

    def unless_nan(self, of: str, weights: str, otherwise: str, dtype: str, k: int) -> str:
        """[L, k] `of`, but for rows whose weight is NaN."""
        (made,) = self._generic(
            {dtype: k},
            f"""
    %none = arith.constant -1 : i32
    %value = tensor.extract %{of}[%l, %i] : {self._type(dtype, k)}
    %weight = tensor.extract %{weights}[%l] : {self._type("f32", 0)}
    %bad = arith.cmpf uno, %weight, %weight : f32
    %r = arith.select %bad, {otherwise}, %value : {dtype}
    linalg.yield %r : {dtype}""",
        )
        return made

    def _type(self, dtype: str, columns: int) -> TensorType:
        rows = self.call.type_of("x").shape[0]
        return TensorType((rows, columns) if columns else (rows,), dtype)

    def _read(self, name: str, at: str, of: _Numbers) -> str:
        """%name and %name_id of the number at an index."""
        value = f"%{name} = tensor.extract %{of.values}[%l, %{at}] : "
        if not of.ids:
            return f"""{value}{self.call.type_of("x")}
      %{name}_id = arith.index_cast %{at} : index to i32"""
        return f"""{value}{self._type("f32", of.count)}
      %{name}_id = tensor.extract %{of.ids}[%l, %{at}] : {self._type("i32", of.count)}"""

    def _generic(self, results: dict[str, int], body: str) -> list[str]:
        """Tensors [L, columns] of these element types, or [L] for 0 columns.

        body: reads %l, %i and _CONSTANTS.
        """
        types = [self._type(dtype, columns) for dtype, columns in results.items()]
        number = len(self.lines)
        names = [f"made_{number}_{dtype}" for dtype in results]
        dyn = "" if is_static(types[0].shape[0]) else "%l_size"
        empty = [f"%no_{name}" for name in names]
        has_columns = types[0].rank == 2
        dims = "l, i" if has_columns else "l"
        maps = ", ".join([f"affine_map<({dims}) -> ({dims})>"] * len(types))
        kinds = ", ".join(['"parallel"'] * types[0].rank)
        arguments = ", ".join(f"%o{i}: {t.dtype}" for i, t in enumerate(types))
        listed = ", ".join(map(str, types))
        makers = "\n".join(
            f"  {e} = tensor.empty({dyn}) : {t}" for e, t in zip(empty, types, strict=True)
        )
        column = "\n    %i = linalg.index 1 : index" if has_columns else ""
        results_are = listed if len(types) == 1 else f"({listed})"
        self.lines.append(f"""{makers}
  {", ".join(f"%{name}" for name in names)} = linalg.generic {{
      indexing_maps = [{maps}], iterator_types = [{kinds}]
  }} outs({", ".join(empty)} : {listed}) {{
  ^bb0({arguments}):
    %l = linalg.index 0 : index{column}
{_CONSTANTS}{body}
  }} -> {results_are}""")
        return names


def _comes_before(a: str, b: str) -> str:
    """%a_before_b."""
    return f"""%more_{a} = arith.cmpf ogt, %{a}, %{b} : f32
      %equal_{a} = arith.cmpf oeq, %{a}, %{b} : f32
      %lower_{a} = arith.cmpi slt, %{a}_id, %{b}_id : i32
      %tied_{a} = arith.andi %equal_{a}, %lower_{a} : i1
      %{a}_before_{b} = arith.ori %more_{a}, %tied_{a} : i1"""
