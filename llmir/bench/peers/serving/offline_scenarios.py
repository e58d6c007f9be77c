"""What is asked of engines offline, in the workers of `llmir bench peers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from llmir.bench.peers.process import SideProcess
from llmir.bench.peers.serving.base import OTHERS_CPU, OUTPUT, Round, Scenario, Value

Kind = Literal["offline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offline(Scenario):
    """Many prompts at once, without a server: token ids in, token ids out, greedily."""

    name: str
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    kind: ClassVar[Kind] = "offline"
    values: ClassVar[Sequence[Value]] = (OUTPUT,)

    @property
    def about(self) -> str:
        return (
            f"offline, {self.num_requests} requests of {self.prompt_tokens} tokens in, "
            f"{self.output_tokens} out"
        )

    def command(self, given: Round, **sampling: float) -> dict[str, Any]:
        """What a worker is told."""
        rng = np.random.default_rng(given.seed)
        prompts = [given.vocabulary.draw(self.prompt_tokens, rng) for _ in range(self.num_requests)]
        sampling = {"temperature": 0.0, "top_p": 1.0, **sampling}
        return {
            "do": "generate",
            "prompts": prompts,
            "max_tokens": self.output_tokens,
            "seed": given.seed,
            **sampling,
        }

    def measure(self, process: SideProcess, given: Round) -> dict[str, float]:
        answer = process.ask(self.command(given))
        return {"output_throughput": self._rate(answer), **_others(answer)}

    def _rate(self, answer: dict[str, Any]) -> float:
        return self.num_requests * self.output_tokens / float(answer["seconds"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Offline):
    """The same with temperature and top-p, against greedy, by llmir alone."""

    temperature: float
    top_p: float
    has_peers: ClassVar[bool] = False
    values: ClassVar[Sequence[Value]] = (
        Value(name="greedy_throughput", unit="tok/s", better="higher"),
        Value(name="sampled_throughput", unit="tok/s", better="higher"),
        Value(name="sampled_over_greedy", unit="", better="higher"),
    )

    @property
    def about(self) -> str:
        return (
            f"offline, {self.num_requests} requests of {self.prompt_tokens} tokens in, "
            f"{self.output_tokens} out, temperature {self.temperature:g} and "
            f"top-p {self.top_p:g} against greedy"
        )

    def measure(self, process: SideProcess, given: Round) -> dict[str, float]:
        greedy = self._rate(process.ask(self.command(given)))
        answer = process.ask(self.command(given, temperature=self.temperature, top_p=self.top_p))
        sampled = self._rate(answer)
        return {
            "greedy_throughput": greedy,
            "sampled_throughput": sampled,
            "sampled_over_greedy": sampled / greedy,
            **_others(answer),
        }


def _others(answer: dict[str, Any]) -> dict[str, float]:
    share = answer.get("others_cpu_share")
    return {} if share is None else {OTHERS_CPU: float(share)}
