"""The contract of a peer: its environment, and its sides.

A *peer* is an engine; a *side* is one way to run it: a file or precision, with a name of its
own in the tables ("llama.cpp Q4_0").  Each side is a process that runs a script of `workers/`
under the Python of the peer's environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

LLMIR = "llmir"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A virtual environment: how it is made.

    name       of its directory, in the directory of all environments
    installs   arguments of one `pip install` after another; versions are pinned
    build      variables of the installs' own environment; "{here}" is the directory
    files      file name → text, written there before anything is installed
    steps      commands run in it after that, one after another; "{here}" is the directory,
               "{cores}" how many processes may build at a time
    """

    name: str
    installs: tuple[tuple[str, ...], ...]
    build: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeModel:
    """A model file (or directory) that is made from the given one, once, by a worker.

    form     names the file; two sides with the same form share it
    worker   the script whose `make` writes it, under `environment`
    spec     what `make` is told besides source and place
    """

    form: str
    worker: str
    environment: Environment
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SidePlan:
    """One side of a peer, before anything is installed or made.

    name          in tables
    key           after the peer's name in --peers, "llama.cpp:q4_0"
    worker        a script of workers/, without .py
    environment   whose Python runs it
    model         made from the file, or None: the file itself
    variables     of the process
    spec          what `Side` is told besides model and threads
    is_same_file  the same quantised weights as llmir's, not another form of them
    by_default    whether the peer's name alone selects it
    """

    name: str
    key: str
    worker: str
    environment: Environment
    model: MadeModel | None
    variables: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    is_same_file: bool = False
    by_default: bool = True


class Peer(Protocol):
    """A module of this package that has these two."""

    NAME: str

    def sides(self, file_format: str, num_threads: int) -> Sequence[SidePlan]:
        """Its sides, best known first.  file_format: of most of the file's bytes, "Q4_1"."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """A side that can be started: everything it needs is on disk.  Equal to itself alone.

    command: of the process; load: the first command to it, as workers/serve.py lists it.
    """

    name: str
    command: tuple[str, ...]
    load: Mapping[str, Any]
    log: Path
    is_same_file: bool = False
