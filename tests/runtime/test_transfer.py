"""Arrays to a device and back, by both ways that memory may have, and steps that allocate nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import llmir
from llmir.errors import DeviceError, DeviceMemoryError
from llmir.runtime import transfer
from llmir.runtime.base import StepBatch
from llmir.runtime.devices import open_device
from llmir.runtime.session import Session, SessionOptions
from llmir.runtime.transfer import Timeline, Transfers

DEVICES = ("local-task", "vulkan://0")
# Nothing, odd sizes, more than a page, fewer again: buffers grow and are used again.
SHAPES = [(0,), (1,), (3, 5), (0, 7), (1023,), (4096, 3), (5,)]


def one_token(token: int, place: int) -> StepBatch:
    """A token of the only sequence, at a place of page 1."""
    fields = {
        "token_ids": [token],
        "positions": [place],
        "token_seq": [0],
        "query_start": [0, 1],
        "context_len": [place + 1],
        "page_table": [[[1]]],
        "slots": [[16 + place]],
        "logit_rows": [0],
    }
    return StepBatch(**{name: np.array(value, np.int32) for name, value in fields.items()})


@pytest.mark.parametrize("staged", [False, True], ids=["in place", "staged"])
@pytest.mark.parametrize("uri", DEVICES)
def test_there_and_back(uri: str, staged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Staged: as on a GPU whose memory the host does not see."""
    if staged:
        monkeypatch.setattr(transfer, "_host_sees", lambda buffer, memory: False)
    device = open_device(uri)
    transfers = Transfers(device, Timeline(device), is_cpu=uri == "local-task")
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        floats = rng.standard_normal(shape).astype(np.float32)
        numbers = rng.integers(-9, 9, shape).astype(np.int32)
        strided = np.asfortranarray(rng.standard_normal((7, 3)).astype(np.float32))
        sent = transfers.send([floats, numbers, strided])
        found = transfers.fetch(sent, [np.float32, np.int32, np.float32])
        for array, expected in zip(found, (floats, numbers, strided), strict=True):
            np.testing.assert_array_equal(array, expected)
            assert array.shape == expected.shape


@pytest.mark.parametrize("uri", DEVICES)
def test_a_step_like_one_before_allocates_nothing(
    uri: str, llama_everywhere: llmir.Artifact
) -> None:
    session = Session(llama_everywhere, SessionOptions(device=uri, kv_cache_bytes=1 << 20))

    def allocated() -> int:
        statistics = session.device.allocator.statistics
        return int(statistics["device_bytes_allocated"] + statistics["host_bytes_allocated"])

    first = session.step(one_token(7, 0)).copy()
    session.step_greedy(one_token(7, 0))
    before = allocated()
    np.testing.assert_array_equal(session.step(one_token(7, 0)), first)
    for place in range(1, 4):
        session.step_greedy(one_token(9, place))
    assert allocated() == before


def test_a_greedy_step_moves_token_ids_alone(
    llama_everywhere: llmir.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 263 logits a row, four bytes cross the bus."""
    moved: list[int] = []
    plain = Transfers.fetch

    def fetch(self: Transfers, views: list[Any], dtypes: list[Any]) -> list[Any]:
        found = plain(self, views, dtypes)
        moved.append(sum(array.nbytes for array in found))
        return found

    monkeypatch.setattr(Transfers, "fetch", fetch)
    llm = llmir.LLM(llama_everywhere, device="vulkan://0", kv_cache_memory_bytes=1 << 20)
    llm.generate([[5, 6, 7]], llmir.SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    assert moved == [4, 4, 4]


def test_a_failed_step_can_be_tried_again(
    llama_everywhere: llmir.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(llama_everywhere, SessionOptions(device="vulkan://0", kv_cache_bytes=1 << 20))
    expected = session.step(one_token(7, 0)).copy()
    plain = Transfers.fetch

    def fetch(self: Transfers, *args: object) -> list[Any]:
        monkeypatch.setattr(Transfers, "fetch", plain)
        raise RuntimeError("c/vulkan/queue.c:1: INTERNAL; the device was lost")

    monkeypatch.setattr(Transfers, "fetch", fetch)
    with pytest.raises(DeviceError, match="a step of 1 tokens failed on vulkan"):
        session.step(one_token(7, 0))
    np.testing.assert_array_equal(session.step(one_token(7, 0)), expected)

    def exhausted(self: Transfers, *args: object) -> list[Any]:
        raise RuntimeError("c/vulkan/allocator.c:1: RESOURCE_EXHAUSTED; no room")

    monkeypatch.setattr(Transfers, "fetch", exhausted)
    with pytest.raises(DeviceMemoryError, match=r"for a step of 1 tokens \(RESOURCE_EXHAUSTED; no"):
        session.step(one_token(7, 0))
