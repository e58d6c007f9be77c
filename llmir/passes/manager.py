"""Runs passes over llm IR, with the verifier between them.

MLIR does not know the llm dialect: it cannot call our verifiers, so the
manager does, after every pass, for every llm op.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from iree.compiler import ir

from llmir.errors import CompileError, VerifyError
from llmir.passes.base import Pass, get_pass
from llmir.passes.ir import call_of, llm_ops


@dataclass(frozen=True, slots=True, kw_only=True)
class PassManager:
    """print_ir_after: names of passes after which the module is printed to stderr."""

    print_ir_after: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.print_ir_after:
            get_pass(name)  # an unknown name is an error now, not silence later

    def run(self, module: ir.Module, passes: Iterable[Pass | str]) -> None:
        """Run passes, given as objects or as `get_pass` reads them, in order.

        Raises VerifyError or CompileError naming the pass after which, or in which,
        the module is wrong.
        """
        for item in passes:
            current = get_pass(item) if isinstance(item, str) else item
            try:
                current.run(module)
            except CompileError as error:
                error.add_note(f"in pass {current.name}")
                raise
            verify(module, f"after pass {current.name}")
            if current.name in self.print_ir_after:
                print(f"// ----- IR after {current.name} -----\n{module}", file=sys.stderr)


def verify(module: ir.Module, when: str) -> None:
    """Verify the module with MLIR's verifier and every llm op with its own.

    Raises VerifyError; `when` stands in its message.
    """
    try:
        module.operation.verify()
    except ir.MLIRError as error:
        raise VerifyError(f"{when}: {error}") from error
    for operation in llm_ops(module):
        try:
            call_of(operation)
        except VerifyError as error:
            raise VerifyError(f"{when}: {error}") from error
