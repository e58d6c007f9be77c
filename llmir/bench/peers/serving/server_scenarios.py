"""What is asked of servers: loads of streaming clients."""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import numpy as np

from llmir.bench.peers.process import SideError
from llmir.bench.peers.serving.base import CLIENT_CPU, OUTPUT, Round, Scenario, Value
from llmir.bench.peers.serving.llmir_server import UNCHUNKED
from llmir.bench.peers.serving.process import ServerProcess
from llmir.bench.serve.client import RequestResult
from llmir.bench.serve.datasets import RandomDataset, SampleRequest, make_requests
from llmir.bench.serve.load import Client, Loaded
from llmir.bench.serve.metrics import summarise

Kind = Literal["server"]
Result = TypeVar("Result")
# Of an answer that nobody measures: it only has to have been begun.
WARM_UP_OUTPUT_TOKENS = 4


def _ms(name: str) -> Value:
    return Value(name=name, unit="ms", better="lower")


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstAnswer(Scenario):
    """A new process, up to its first whole answer."""

    name: str
    kind: ClassVar[Kind] = "server"
    restarts: ClassVar[bool] = True
    values: ClassVar[Sequence[Value]] = (Value(name="first_answer", unit="s", better="lower"),)

    @property
    def about(self) -> str:
        return "from the start of the process to the first answer, 16 tokens"

    def measure(self, process: ServerProcess, given: Round) -> dict[str, float]:
        return {"first_answer": process.load_s}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoad(Scenario):
    """So many clients, each with one request at a time.

    A prefix that the prompts share has been answered for before, for as many clients at once.
    """

    name: str
    kind: ClassVar[Kind] = "server"
    num_clients: int
    num_requests: int
    shared_tokens: int
    own_tokens: int
    output_tokens: int
    values: ClassVar[Sequence[Value]] = (
        OUTPUT,
        _ms("mean_ttft"),
        _ms("p99_ttft"),
        _ms("mean_tpot"),
        _ms("p99_itl"),
    )

    @property
    def about(self) -> str:
        shared = f"{self.shared_tokens} shared and cached + " if self.shared_tokens else ""
        return (
            f"{self.num_clients} clients, {self.num_requests} requests of {shared}"
            f"{self.own_tokens} own tokens in, {self.output_tokens} out"
        )

    def measure(self, process: ServerProcess, given: Round) -> dict[str, float]:
        dataset = RandomDataset(
            input_len=self.own_tokens,
            output_len=self.output_tokens,
            prefix_len=self.shared_tokens,
        )
        warmups = self.num_clients if self.shared_tokens else 1
        requests, warm = make_requests(
            dataset, self.num_requests, given.vocabulary, given.seed, warmups
        )

        async def run(client: Client) -> Loaded:
            await _warm_up(client, warm)
            return await client.load(requests, max_concurrency=self.num_clients)

        loaded = _in_loop(process, run)
        _check(loaded.results, requests)
        found = summarise(loaded.results, loaded.duration_s)
        return {
            "output_throughput": found["output_throughput"],
            **{v.name: found[f"{v.name}_ms"] for v in self.values if v.unit == "ms"},
            CLIENT_CPU: loaded.client_cpu_share,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedPrompt(Scenario):
    """The time to the first token of a long prompt that is new, and of the same again."""

    name: str
    kind: ClassVar[Kind] = "server"
    prompt_tokens: int
    num_repeats: int
    values: ClassVar[Sequence[Value]] = (
        _ms("cold_ttft"),
        _ms("cached_ttft"),
        Value(name="cached_over_cold_ttft", unit="", better="lower"),
    )

    @property
    def about(self) -> str:
        return f"a prompt of {self.prompt_tokens} tokens, then the same {self.num_repeats} ×"

    def measure(self, process: ServerProcess, given: Round) -> dict[str, float]:
        dataset = RandomDataset(input_len=self.prompt_tokens, output_len=WARM_UP_OUTPUT_TOKENS)
        (request,), warm = make_requests(dataset, 1, given.vocabulary, given.seed, 1)
        short = dataclasses.replace(warm[0], prompt=warm[0].prompt[:16], input_len=16)

        async def run(client: Client) -> list[RequestResult]:
            await _warm_up(client, [short])
            return [await client.send(request) for _ in range(1 + self.num_repeats)]

        results = _in_loop(process, run)
        _check(results, [request] * len(results))
        cold, *cached = [1e3 * (r.ttft_s or 0.0) for r in results]
        cached_ms = statistics.median(cached)
        return {
            "cold_ttft": cold,
            "cached_ttft": cached_ms,
            "cached_over_cold_ttft": cached_ms / cold,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedLoad(Scenario):
    """Clients that decode all the time, and long prompts that arrive at a fixed rate beside them.

    Inter-token latencies are those of the clients between the first long prompt's arrival and
    the last one's first token.
    """

    name: str
    kind: ClassVar[Kind] = "server"
    num_clients: int
    own_tokens: int
    output_tokens: int
    long_tokens: int
    num_long: int
    long_per_s: float
    variants: ClassVar[Sequence[str]] = (UNCHUNKED,)
    values: ClassVar[Sequence[Value]] = (
        _ms("median_itl"),
        _ms("p99_itl"),
        Value(name="p99_over_median_itl", unit="", better="lower"),
        _ms("mean_long_ttft"),
    )

    @property
    def about(self) -> str:
        return (
            f"{self.num_clients} clients with {self.own_tokens} tokens in, "
            f"{self.output_tokens} out; beside them {self.num_long} prompts of "
            f"{self.long_tokens} tokens, {self.long_per_s:g} per second"
        )

    def measure(self, process: ServerProcess, given: Round) -> dict[str, float]:
        steady = RandomDataset(input_len=self.own_tokens, output_len=self.output_tokens)
        long = RandomDataset(input_len=self.long_tokens, output_len=WARM_UP_OUTPUT_TOKENS)
        long_requests, _ = make_requests(long, self.num_long, given.vocabulary, given.seed)
        arrivals = [i / self.long_per_s for i in range(self.num_long)]

        async def run(client: Client) -> tuple[list[RequestResult], Loaded]:
            async def keep_busy(number: int) -> list[RequestResult]:
                rng = np.random.default_rng([given.seed, number])
                results = []
                while not is_done:
                    (request,) = steady.make(1, given.vocabulary, rng)
                    results.append(await client.send(request))
                    _check(results[-1:], [request])
                return results

            is_done = False
            busy = [asyncio.create_task(keep_busy(i)) for i in range(self.num_clients)]
            try:
                # Until all of them decode.
                await asyncio.sleep(1 / self.long_per_s)
                loaded = await client.load(long_requests, arrivals)
            finally:
                is_done = True
                results = await asyncio.gather(*busy)
            return [result for own in results for result in own], loaded

        steady_results, loaded = _in_loop(process, run)
        _check(loaded.results, long_requests)
        return self._figures(steady_results, loaded)

    def _figures(self, steady: Sequence[RequestResult], loaded: Loaded) -> dict[str, float]:
        begun = min(r.start for r in loaded.results)
        end = max(r.start + (r.ttft_s or 0.0) for r in loaded.results)
        itls_ms = [
            1e3 * itl
            for result in steady
            for at, itl in zip(result.token_times()[1:], result.itls_s, strict=True)
            if begun <= at <= end
        ]
        if not itls_ms:
            raise SideError("no client got a token while the long prompts were computed")
        median, p99 = (float(p) for p in np.percentile(itls_ms, (50, 99)))
        long_ttfts = [1e3 * (r.ttft_s or 0.0) for r in loaded.results]
        return {
            "median_itl": median,
            "p99_itl": p99,
            "p99_over_median_itl": p99 / median if median else float("inf"),
            "mean_long_ttft": statistics.fmean(long_ttfts),
            CLIENT_CPU: loaded.client_cpu_share,
        }


async def _warm_up(client: Client, requests: Sequence[SampleRequest]) -> None:
    short = [dataclasses.replace(r, output_len=WARM_UP_OUTPUT_TOKENS) for r in requests]
    _check((await client.load(short)).results, short)


def _in_loop(process: ServerProcess, run: Callable[[Client], Awaitable[Result]]) -> Result:
    async def main() -> Result:
        client = Client(process.endpoint)
        try:
            return await run(client)
        finally:
            await client.close()

    return asyncio.run(main())


def _check(results: Sequence[RequestResult], requests: Sequence[SampleRequest]) -> None:
    """Raises SideError for a request that failed, or whose answer is not as long as asked for."""
    for result, request in zip(results, requests, strict=True):
        if result.error:
            raise SideError(f"a request failed: {result.error}")
        if result.output_tokens != request.output_len:
            raise SideError(
                f"an answer has {result.output_tokens} tokens, and {request.output_len} were "
                "asked for"
            )
