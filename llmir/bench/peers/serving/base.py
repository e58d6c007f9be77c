"""The contract of a server that is compared: how it is started, and what a scenario asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from llmir.bench.peers.base import Environment, MadeModel
from llmir.bench.serve.datasets import Vocabulary

HOST = "127.0.0.1"
MODEL_NAME = "bench"
"""What requests call the model, where a server wants a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """A peer's server, before anything is installed or made.

    name, key, environment, model, is_same_file, by_default   as in peers.base.SidePlan
    command    of the process; "{here}" is the environment's directory, "{python}" its Python,
               "{model}" the model's place, "{threads}" how many it may have; "{host}" and
               "{port}" are filled in when it starts
    variables  of the process
    overlay    file name → text, in a directory of the side's own that its Python looks into first
    versions   of what is measured
    """

    name: str
    key: str
    environment: Environment
    model: MadeModel | None
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    overlay: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    is_same_file: bool = False
    by_default: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Server:
    """A server that can be started.  Equal to itself alone.

    command   as a plan's, of which only "{host}" and "{port}" are left
    is_own    llmir, or a variant of it: no peer
    """

    name: str
    command: tuple[str, ...]
    log: Path
    versions: Mapping[str, str] = field(default_factory=dict)
    is_same_file: bool = False
    is_own: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A figure of a scenario: its name, its unit, and which way is better."""

    name: str
    unit: str
    better: Literal["higher", "lower"]


OUTPUT = Value(name="output_throughput", unit="tok/s", better="higher")
PEAK_MEMORY = Value(name="peak_memory", unit="MB", better="lower")
CLIENT_CPU, OTHERS_CPU = "client_cpu_share", "others_cpu_share"
"""Shares that a round may tell beside its figures: of one core, and of all CPU time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a scenario needs besides a process.

    vocabulary  what prompts are drawn from, the same for all sides
    seed        another in every alternation, the same for all sides of one
    """

    vocabulary: Vocabulary
    seed: int


class Scenario(ABC):
    """What is asked of every side in its turn.

    name       as --scenarios has it
    kind       "server": of servers; "offline": of the workers of `llmir bench peers`
    values     what a round gives, PEAK_MEMORY aside
    variants   names of llmir's variants that take part besides llmir itself
    has_peers  whether others take part
    restarts   whether each round begins with a new process
    """

    name: str
    kind: ClassVar[Literal["server", "offline"]]
    values: ClassVar[Sequence[Value]]
    variants: ClassVar[Sequence[str]] = ()
    has_peers: ClassVar[bool] = True
    restarts: ClassVar[bool] = False

    @property
    @abstractmethod
    def about(self) -> str:
        """In a sentence, with the counts."""

    @abstractmethod
    def measure(self, process: Any, given: Round) -> dict[str, float]:
        """One round: the name of each of `values` → its figure; CLIENT_CPU and OTHERS_CPU too,
        where they are known.

        process: a ServerProcess that runs, or a SideProcess.  Raises SideError.
        """
