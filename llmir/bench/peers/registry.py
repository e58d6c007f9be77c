"""Peers by name, and what --peers selects of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import cast

from llmir.bench.peers.base import Peer, SidePlan
from llmir.errors import UnknownNameError

# name → module of this package, imported when the peer is asked for
PEERS = {
    "llama.cpp": "llama_cpp",
    "vllm": "vllm",
    "openvino": "openvino",
    "transformers": "transformers",
}


def peer(name: str) -> Peer:
    """The peer of a name.  Raises UnknownNameError."""
    if name not in PEERS:
        raise UnknownNameError("peer", name, PEERS)
    return cast(Peer, import_module(f"llmir.bench.peers.{PEERS[name]}"))


def select(names: Sequence[str], file_format: str, num_threads: int) -> list[SidePlan]:
    """The sides that "peer" (those by default), "peer:*" (all) and "peer:side" name.

    Each once, in this order.  Raises UnknownNameError.
    """
    found: dict[str, SidePlan] = {}
    for name in names:
        peer_name, _, key = name.partition(":")
        plans = {p.key: p for p in peer(peer_name).sides(file_format, num_threads)}
        if key and key != "*" and key not in plans:
            raise UnknownNameError(f"side of {peer_name}", key, plans)
        for plan in plans.values():
            if plan.key == key or key == "*" or (not key and plan.by_default):
                found[plan.name] = plan
    return list(found.values())
