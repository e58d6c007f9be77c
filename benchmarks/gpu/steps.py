"""Whole steps of a model without weights of its own: they are random, and made here.

A step is called as the engine does: its inputs are on the device, it is queued with fences, and
what is waited for is its end.  The engine sends eight small arrays before, without waiting.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import iree.runtime as rt
import numpy as np
from arrays import BYTES, Array, get, put

_POOL_BYTES = 64 << 20


class Step:
    """A module of prepare.py's with random weights on the device."""

    def __init__(self, device: Any, instance: Any, path: Path) -> None:
        self.device, self.about = device, json.loads(path.with_suffix(".json").read_text())
        self.spec = self.about["model"]
        start = time.monotonic()
        index = rt.ParameterIndex()
        self._pools: dict[str, Array] = {}
        self.weight_bytes = self.read_bytes = 0
        for parameter in self.about["parameters"]:
            array = self._parameter(parameter)
            index.add_buffer(parameter["name"], array)
            self.weight_bytes += array.nbytes
            # Of a table that is no head as well a step reads a few rows.
            if not parameter["name"].startswith(("model.embed_tokens", "rope_table")):
                self.read_bytes += array.nbytes
        provider = index.create_provider("model")
        modules = [
            rt.create_hal_module(instance, device),
            rt.create_io_parameters_module(instance, provider),
            rt.VmModule.mmap(instance, str(path)),
        ]
        self._index, self._context = index, rt.VmContext(instance, modules)
        self._function = modules[2].lookup_function("step_greedy$async")
        self.load_seconds = time.monotonic() - start
        self._kv: list[Any] = []

    def _parameter(self, parameter: dict[str, Any]) -> Array:
        count = int(np.prod(parameter["shape"], dtype=np.int64))
        form, dtype = parameter["packed"], parameter["dtype"]
        if "norm" in parameter["name"] and dtype == "f32":
            return np.ones(count, np.float32)
        if parameter["name"] == "rope_table":
            return self._rope_table(parameter["shape"])
        kind = form or dtype
        if kind not in self._pools or self._pools[kind].nbytes < count * BYTES[dtype]:
            self._pools[kind] = self._pool(kind, count * BYTES[dtype])
        return self._pools[kind][: count * BYTES[dtype]]

    def _pool(self, kind: str, num_bytes: int) -> Array:
        """uint8, whole sections: of bf16 and float32 small numbers, of integers any."""
        rng = np.random.default_rng(0)
        if kind == "bf16":
            numbers = rng.standard_normal(_POOL_BYTES // 2, np.float32) * np.float32(0.02)
            piece = (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        elif kind == "f32":
            piece = rng.uniform(0.002, 0.004, _POOL_BYTES // 4).astype(np.float32).view(np.uint8)
        elif kind.startswith("int4_g"):
            section = self.about["section_bytes"][kind]
            sections = rng.integers(0, 256, (_POOL_BYTES // section, section), np.uint8)
            scales = rng.uniform(0.002, 0.004, (len(sections), 16)).astype(np.float32)
            sections[:, :64] = scales.view(np.uint8)
            piece = sections.reshape(-1)
        else:
            assert kind == "i8", f"no random weights for {kind}"
            piece = rng.integers(0, 256, _POOL_BYTES, np.uint8)
        return np.tile(piece, -(-num_bytes // len(piece)))

    def _rope_table(self, shape: list[int]) -> Array:
        positions, dim = shape
        rates = self.spec["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
        angles = np.arange(positions)[:, None] * rates
        table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        return table.astype(np.float32).reshape(-1)

    def start(self, num_seqs: int, positions: int) -> None:
        """Pages for so many sequences of so many positions, zeros."""
        page_size = self.about["page_size"]
        self._columns = -(-positions // page_size)
        pages = num_seqs * self._columns + 1
        shape = (pages, *self.about["page_shape"])
        self.kv_token_bytes = int(np.prod(shape[1:])) * 2 // page_size * self.spec["num_layers"]
        self._kv = []
        zeros = np.zeros(shape, np.uint16)
        for _ in range(self.spec["num_layers"]):
            self._kv.append(put(self.device, zeros, "bf16"))
        order = np.random.default_rng(1).permutation(np.arange(1, pages, dtype=np.int32))
        self._table = order.reshape(num_seqs, self._columns)

    def prepare(self, num_seqs: int, first: int, count: int) -> None:
        """Put on the device what a step of `count` tokens of each sequence from `first` on gets."""
        page_size = self.about["page_size"]
        position = np.tile(np.arange(first, first + count), num_seqs)
        seq = np.repeat(np.arange(num_seqs), count)
        slots = self._table[seq, position // page_size] * page_size + position % page_size
        tokens = np.arange(num_seqs * count) * 7 % self.spec["vocab_size"]
        arrays = (
            *(tokens, position, seq, np.arange(num_seqs + 1) * count),
            *(np.full(num_seqs, first + count), self._table[:num_seqs][None], slots[None]),
            np.arange(1, num_seqs + 1) * count - 1,
        )
        self._inputs = [put(self.device, a.astype(np.int32), "i32") for a in arrays]

    def __call__(self) -> float:
        """One step of what was prepared; the seconds until all of it was queued."""
        start = time.perf_counter()
        arguments, results = rt.VmVariantList(10 + len(self._kv)), rt.VmVariantList(1)
        for view in (*self._inputs, *self._kv):
            arguments.push_ref(view)
        done = self.device.create_semaphore(0)
        arguments.push_ref(rt.HalFence(0))
        arguments.push_ref(rt.HalFence.create_at(done, 1))
        self._context.invoke(self._function, arguments, results)
        queued = time.perf_counter() - start
        done.wait(1)
        self._results = results
        return queued

    def tokens(self) -> Array:
        """The likeliest next token of each sequence, of the last step."""
        return get(self.device, self._results.get_as_object(0, rt.HalBufferView), np.int32)

    @property
    def operations_per_token(self) -> float:
        """Of the matrices that all tokens go through, without the head and attention."""
        s = self.spec
        heads = (s["num_heads"] + 2 * s["num_kv_heads"]) * s["head_dim"]
        layer = s["hidden_size"] * (heads + s["num_heads"] * s["head_dim"])
        layer += 3 * s["hidden_size"] * s["intermediate_size"]
        return 2.0 * layer * s["num_layers"]
