"""Progress of long work: the stage on stderr, where someone looks on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

StageHook = Callable[[str], AbstractContextManager[None]]


def is_watched() -> bool:
    """Whether a person sees our output: both streams are terminals."""
    return sys.stderr.isatty() and sys.stdout.isatty()


def num_compile_stages(num_targets: int) -> int:
    """How many stages `llmir.compile` reports for that many targets."""
    return 7 + 2 * num_targets


@contextmanager
def stages(total: int) -> Iterator[StageHook]:
    """Yields an `on_stage`, as `llmir.compile` takes it, for about `total` stages.

    On a terminal, a bar with the name of the stage and the time so far is drawn while
    stages run, and removed at the end; elsewhere nothing is printed.
    """
    if not is_watched():
        yield lambda name: nullcontext()
        return
    from rich.console import Console  # costs a tenth of a second: not for who shows nothing
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        # Without a stage there is nothing to show: a cache hit draws no bar.
        task = progress.add_task("", total=total, visible=False)

        @contextmanager
        def on_stage(name: str) -> Iterator[None]:
            progress.update(task, description=name, visible=True)
            yield
            progress.advance(task)

        yield on_stage
