"""The masks of a step, computed while the device runs it.

Shape legend: L constrained rows, W words of a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from llguidance import LLExecutor
from llguidance.numpy import fill_next_token_bitmask_par

from llmir.engine.structured_output.constraint import Constraint


class MaskFiller:
    """Computes masks on threads of its own, which begin with the first constrained request."""

    def __init__(self) -> None:
        self._executor: LLExecutor | None = None
        self._thread: ThreadPoolExecutor | None = None

    @contextmanager
    def beside(self, constraints: Sequence[Constraint]) -> Iterator[None]:
        """Compute the next mask of each constraint while the block runs.

        A mask depends on the tokens so far and not on the logits, so that it need not wait
        for them; the library does not hold the interpreter's lock.  The block must not
        touch the constraints.
        """
        if not constraints:
            yield
            return
        if self._executor is None or self._thread is None:
            self._executor = LLExecutor()
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="llmir-masks")
        masks_LW = np.empty((len(constraints), constraints[0].num_words), np.int32)
        rows = [(constraint.matcher, row) for row, constraint in enumerate(constraints)]
        job = self._thread.submit(fill_next_token_bitmask_par, self._executor, rows, masks_LW)
        try:
            yield
        finally:
            job.result()
        for constraint, mask_W in zip(constraints, masks_LW, strict=True):
            constraint.set_mask(mask_W)
