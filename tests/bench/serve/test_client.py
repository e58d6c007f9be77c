"""Requests against a fake server: times, counts, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from bench.serve.fake_server import FakeServer, serving

from llmir.bench.serve.client import AnswerReader, Endpoint, RequestResult
from llmir.bench.serve.datasets import SampleRequest
from llmir.bench.serve.load import Client, Loaded
from llmir.errors import OptionError

# A busy machine may hold this process back between a token's arrival and its being noted.
TOLERANCE_S = 0.25


def request(first: int | str, output_len: int = 4, length: int = 3) -> SampleRequest:
    words = isinstance(first, str)
    prompt: Any = " ".join([str(first)] * length) if words else [first] * length
    return SampleRequest(prompt=prompt, input_len=length, output_len=output_len)


def endpoint(server: FakeServer, **more: Any) -> Endpoint:
    return Endpoint(base_url=f"{server.url}/v1", model="fake", timeout_s=20.0, **more)


def load(
    where: Endpoint, requests: Sequence[SampleRequest], arrivals: Any = None, **more: Any
) -> Loaded:
    async def run() -> Loaded:
        client = Client(where)
        try:
            return await client.load(requests, arrivals, **more)
        finally:
            await client.close()

    return asyncio.run(run())


def one(where: Endpoint, what: SampleRequest) -> RequestResult:
    return load(where, [what]).results[0]


def test_times_are_those_at_which_the_server_wrote() -> None:
    with serving(FakeServer(first_delay_s=0.1, gap_s=0.03)) as server:
        result = one(endpoint(server), request(7, output_len=6))
    (written,) = server.writes
    assert result.error == ""
    assert len(written) == 6
    times = result.token_times()
    assert len(times) == 6
    for seen, wrote in zip(times, written, strict=True):
        assert wrote <= seen < wrote + TOLERANCE_S
    assert result.ttft_s is not None
    assert 0.1 <= result.ttft_s < 0.1 + TOLERANCE_S
    assert len(result.itls_s) == 5
    assert result.latency_s == pytest.approx(result.ttft_s + sum(result.itls_s))
    assert result.tpot_s == pytest.approx(sum(result.itls_s) / 5)
    assert result.tpot_s >= 0.03 * 0.9
    assert (result.prompt_tokens, result.output_tokens, result.is_counted) == (3, 6, True)


def test_chat_does_not_count_the_event_with_the_role() -> None:
    with serving(FakeServer(first_delay_s=0.1)) as server:
        result = one(endpoint(server, backend="openai-chat"), request("hello", output_len=3))
    assert (result.error, result.output_tokens, len(result.itls_s)) == ("", 3, 2)
    assert result.ttft_s is not None
    assert result.ttft_s >= 0.1
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "hello hello hello"}]


def test_without_usage_events_are_counted() -> None:
    with serving(FakeServer(sends_usage=False)) as server:
        result = one(endpoint(server), request(7, output_len=5))
    assert (result.output_tokens, result.is_counted) == (5, False)


def test_what_is_sent() -> None:
    with serving(FakeServer()) as server:
        where = endpoint(server, headers={"Authorization": "Bearer k"}, extra_body={"top_k": 3})
        one(where, request(7))
        one(replace(where, ignore_eos=False, include_usage=False, top_p=0.5), request(7))
    assert server.bodies[0] == {
        "model": "fake",
        "prompt": [7, 7, 7],
        "max_tokens": 4,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "top_k": 3,
    }
    assert server.bodies[1].keys() == {
        *"model prompt max_tokens temperature top_p stream top_k".split()
    }
    assert server.headers[0]["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("fault", "said", "tokens"),
    [
        ("500", "status 500: a fault", 0),
        ("cut", "the server closed the connection", 1),
        ("error", "the server sent an error: a step failed", 1),
    ],
)
def test_a_failure_is_the_results_error(fault: str, said: str, tokens: int) -> None:
    with serving(FakeServer(fails={7: fault})) as server:
        loaded = load(endpoint(server), [request(5), request(7), request(6)])
    assert [r.success for r in loaded.results] == [True, False, True]
    failed = loaded.results[1]
    assert failed.error.startswith(said)
    assert failed.output_tokens == tokens
    assert loaded.failed == [failed]


def test_a_request_has_a_time_limit_and_a_server_may_be_missing() -> None:
    with serving(FakeServer(fails={7: "hang"})) as server:
        where = replace(endpoint(server), timeout_s=0.2)
        assert one(where, request(7)).error == "no whole answer within 0.2 s"
    assert "Connect call failed" in one(where, request(7)).error


def test_connections_are_used_again_and_no_more_than_so_many() -> None:
    with serving(FakeServer(gap_s=0.005)) as server:
        loaded = load(endpoint(server), [request(i) for i in range(24)], max_concurrency=4)
    assert not loaded.failed
    assert server.most_at_once == 4
    assert server.num_connections == 4
    # Who had to wait says for how long; the first four had not.
    waits = [r.queue_s for r in loaded.results]
    assert max(waits[:4]) < TOLERANCE_S
    assert waits[-1] > 4 * 3 * 0.005
    assert loaded.duration_s >= 6 * 3 * 0.005
    assert 0 < loaded.client_cpu_share < 2


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    with serving(FakeServer(keeps_alive=False)) as server:
        where = endpoint(server)

        async def run() -> list[RequestResult]:
            client = Client(where)
            results = [await client.send(request(i)) for i in range(5)]
            await client.close()
            return results

        results = asyncio.run(run())
    assert [r.error for r in results] == [""] * 5


def test_requests_are_sent_at_their_times() -> None:
    with serving(FakeServer()) as server:
        loaded = load(endpoint(server), [request(i) for i in range(4)], [0.0, 0.1, 0.1, 0.3])
    starts = [r.start - loaded.results[0].start for r in loaded.results]
    for start, due in zip(starts, [0.0, 0.1, 0.1, 0.3], strict=True):
        assert due - 0.02 <= start < due + TOLERANCE_S
    assert loaded.latest_s < TOLERANCE_S


def test_a_url_must_be_one() -> None:
    for url in ("ftp://x/v1", "http:///v1"):
        with pytest.raises(OptionError, match="is no URL"):
            Client(Endpoint(base_url=url, model="fake"))


# -- events, piece by piece ---------------------------------------------------------------


def feed(*events: object, size: int = 0) -> AnswerReader:
    text = "".join(
        f"data: {e if isinstance(e, str) else json.dumps(e)}\r\n\r\n" for e in events
    ).encode()
    reader = AnswerReader()
    step = size or len(text)
    for i, at in enumerate(range(0, len(text), step)):
        reader.feed(text[at : at + step], float(i))
    return reader


def token(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"text": text, "finish_reason": finish}]}


@pytest.mark.parametrize("size", [1, 2, 7, 0])
def test_events_may_come_in_any_pieces(size: int) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    reader = feed(token("a"), token("b", "stop"), usage, "[DONE]", size=size)
    assert (reader.error, reader.is_whole, len(reader.times)) == ("", True, 2)
    assert reader.usage == usage["usage"]


def test_what_tells_of_no_token_is_not_one() -> None:
    delta = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    assert feed(delta, end, token("", "length"), {"choices": []}).times == []
    half = {"choices": [{"delta": {"content": ""}, "finish_reason": None}]}
    assert len(feed(token(""), half, token("x", "length")).times) == 3


@pytest.mark.parametrize("bad", ["{", "[]", '"x"', '{"choices": 3}', '{"choices": [3]}'])
def test_an_event_that_is_none_is_an_error(bad: str) -> None:
    assert feed(bad).error.startswith("an event that is no completion chunk")
