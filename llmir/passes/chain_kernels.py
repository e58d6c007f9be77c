"""chain-kernels: ops whose C kernels can share a dispatch become one op.

    packed_matmul, rope_append, paged_attention, packed_matmul, …
    →  outputs…, team' = llm.chain(team, slot, inputs…) ({ the ops; llm.yield outputs… })

A chain ends before the second op that writes KV pages, so that equal layers have equal chains,
and before an op that is no C kernel and reads what the chain makes.  `team` is a tensor of
counters, zeros at the beginning of a function, that every chain of it passes on
(dialect_ext.c_chain).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from iree.compiler import ir

from llmir.dialect_ext.c_chain import STAGE_INTS, Chain, Step
from llmir.dialect_ext.c_kernels import PROVIDER, Plan
from llmir.dialect_ext.registry import find_lowering
from llmir.dialect_ext.types import TensorType
from llmir.passes.base import Pass
from llmir.passes.ir import (
    CHAIN,
    RESHAPES,
    YIELD,
    call_of,
    is_llm_op,
    operands_of,
    text_attribute,
    walk,
)

_VIEWS = (*RESHAPES, "tensor.dim")


@dataclass(frozen=True, slots=True)
class ChainKernels(Pass):
    """Needs select-providers before it, and lower-llm after it."""

    name: ClassVar[str] = "chain-kernels"

    def run(self, module: ir.Module) -> None:
        with module.context, ir.Location.unknown():
            blocks = [b for op in module.body for r in op.operation.regions for b in r]
            for block in blocks:
                _make_chains(_chains_of(block))


@dataclass(slots=True)
class _Run:
    """Operations that become a chain: the ops, and what shows their results in other shapes.

    order: both, as they stand in the program
    """

    ops: list[ir.Operation] = field(default_factory=list)
    views: list[ir.Operation] = field(default_factory=list)
    order: list[ir.Operation] = field(default_factory=list)
    num_kernels: int = 0
    writes_pages: bool = False

    def reads(self, operation: ir.Operation) -> bool:
        """Whether an operation, or one in it, has a result of this run among its operands."""
        mine = set(self.order)
        inner = [operation, *walk(operation)]
        makers = (v.owner for o in inner for v in o.operands if not isinstance(v, ir.BlockArgument))
        return any(m.operation in mine for m in makers)


def plan_of(operation: ir.Operation) -> Plan | None:
    """The C kernels of an op, None if it is lowered to anything else."""
    if text_attribute(operation, "llm.provider") != PROVIDER:
        return None
    call = call_of(operation)
    variant = text_attribute(operation, "llm.variant")
    plan = find_lowering(call.op.name, PROVIDER, variant).plan
    return None if plan is None else plan(call)


def _chains_of(block: ir.Block) -> list[_Run]:
    runs: list[_Run] = []
    run = _Run()
    for view in block:
        operation = view.operation
        plan = plan_of(operation) if is_llm_op(operation) else None
        if plan is None:
            if run.ops and run.reads(operation):
                if operation.name in _VIEWS:
                    run.views.append(operation)
                    run.order.append(operation)
                else:
                    runs.append(run)
                    run = _Run()
            continue
        writes_pages = not call_of(operation).op.pure
        if writes_pages and run.writes_pages:
            runs.append(run)
            run = _Run()
        run.ops.append(operation)
        run.order.append(operation)
        run.num_kernels += len(plan.kernels)
        run.writes_pages |= writes_pages
    return [r for r in (*runs, run) if r.num_kernels > 1]


def _make_chains(runs: list[_Run]) -> None:
    if not runs:
        return
    stages = sum(r.num_kernels for r in runs)
    with ir.InsertionPoint(runs[0].ops[0]):
        zero = _constant(ir.IntegerType.get_signless(32), 0)
        team = ir.Operation.create(
            "flow.tensor.splat",
            results=[ir.Type.parse(f"tensor<{stages * STAGE_INTS}xi32>")],
            operands=[zero],
        ).results[0]
    slot = 0
    for run in runs:
        team = _make_chain(run, team, slot)
        slot += run.num_kernels


def _make_chain(run: _Run, team: ir.Value, slot: int) -> ir.Value:
    """The chain in the place of its last op; returns its team."""
    inside, order = set(run.order), run.order
    results = [r for op in run.ops for r in op.results]
    outputs = [r for r in results if any(u.owner.operation not in inside for u in r.uses)]
    seen_outside: list[ir.Operation] = []  # in order, with those that they are views of
    for view in reversed(run.views):
        users = [u.owner.operation for u in view.results[0].uses]
        if any(user not in inside or user in seen_outside for user in users):
            seen_outside.insert(0, view)
    for view in seen_outside:
        root = view.operands[0]
        while root.owner.operation in run.views:
            root = root.owner.operation.operands[0]
        if root not in outputs:
            outputs.append(root)
    outputs.sort(key=results.index)
    inputs: list[ir.Value] = []
    for op in order:
        for value in op.operands:
            made = not isinstance(value, ir.BlockArgument) and value.owner.operation in inside
            if not made and value not in inputs:
                inputs.append(value)
    with ir.InsertionPoint(run.ops[-1]):
        chain = ir.Operation.create(
            CHAIN,
            results=[*(o.type for o in outputs), team.type],
            operands=[team, _constant(ir.IndexType.get(), slot), *inputs],
            regions=1,
        )
    block = chain.regions[0].blocks.append(*(v.type for v in inputs))
    known = dict(zip(inputs, block.arguments, strict=True))
    with ir.InsertionPoint(block):
        for op in order:
            copy = op.clone()
            for i, value in enumerate(op.operands):
                copy.operands[i] = known[value]
            known |= zip(op.results, copy.results, strict=True)
        ir.Operation.create(YIELD, operands=[known[o] for o in outputs])
    after = chain
    for view in seen_outside:
        if order.index(view) < order.index(run.ops[-1]):
            view.move_after(after)
            after = view
    for old, new in zip(outputs, chain.results, strict=False):
        old.replace_all_uses_with(new)
    for op in reversed(order):
        if op not in seen_outside:
            op.erase()
    return chain.results[len(outputs)]


def _constant(kind: ir.Type, value: int) -> ir.Value:
    return ir.Operation.create(
        "arith.constant", results=[kind], attributes={"value": ir.IntegerAttr.get(kind, value)}
    ).results[0]


def chain_of(operation: ir.Operation) -> Chain:
    """What an llm.chain in the IR says."""
    (block,) = operation.regions[0].blocks
    numbers: dict[ir.Value, int] = {v: i for i, v in enumerate(block.arguments)}
    next_number = len(numbers)
    steps = []
    outputs: tuple[int, ...] = ()
    for view in block:
        inner = view.operation
        if inner.name == YIELD:
            outputs = tuple(numbers[v] for v in inner.operands)
        elif inner.name in RESHAPES:
            numbers[inner.results[0]] = numbers[inner.operands[0]]
        elif inner.name != "tensor.dim":
            plan = plan_of(inner)
            assert plan is not None, inner.name
            operands = operands_of(inner).values()
            given = tuple(None if v is None else numbers[v] for v in operands)
            steps.append(Step(call_of(inner), plan, given))
            for result in inner.results:
                numbers[result] = next_number
                next_number += 1
    team = TensorType.parse(str(operation.operands[0].type))
    assert team is not None, "the first operand is the team"
    inputs = tuple(TensorType.parse(str(v.type)) for v in block.arguments)
    return Chain(team, inputs, tuple(steps), outputs)
