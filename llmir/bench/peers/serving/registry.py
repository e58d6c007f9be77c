"""Peers with a server, by name, and what --peers selects of servers and of offline workers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from llmir.bench.peers import registry
from llmir.bench.peers.base import SidePlan
from llmir.bench.peers.serving.base import ServerPlan
from llmir.errors import UnknownNameError

# name → module of this package, imported when the peer is asked for
SERVERS = {"llama.cpp": "llama_server", "vllm": "vllm_server"}
# Those that answer offline; the others of `llmir bench peers` have no scheduler.
OFFLINE = ("llama.cpp", "vllm", "openvino")
PEERS = tuple(dict.fromkeys((*SERVERS, *OFFLINE)))


def servers(name: str, file_format: str, num_threads: int) -> Sequence[ServerPlan]:
    """All servers of a peer; none if it has none."""
    if name not in SERVERS:
        return ()
    module = import_module(f"llmir.bench.peers.serving.{SERVERS[name]}")
    found: Sequence[ServerPlan] = module.servers(file_format, num_threads)
    return found


def select(
    names: Sequence[str], file_format: str, num_threads: int
) -> tuple[list[ServerPlan], list[SidePlan]]:
    """The servers and workers that "peer" (those by default), "peer:*" (all) and "peer:side" name.

    A side's key is of a server, of a worker, or of both.  Raises UnknownNameError.
    """
    chosen_servers: dict[str, ServerPlan] = {}
    chosen_workers: dict[str, SidePlan] = {}
    for name in names:
        peer, _, key = name.partition(":")
        if peer not in PEERS:
            raise UnknownNameError("peer", peer, PEERS)
        server_plans = servers(peer, file_format, num_threads)
        worker_plans = (
            registry.peer(peer).sides(file_format, num_threads) if peer in OFFLINE else ()
        )
        keys = {plan.key for plan in server_plans} | {plan.key for plan in worker_plans}
        if key and key != "*" and key not in keys:
            raise UnknownNameError(f"side of {peer}", key, keys)
        for server in server_plans:
            if _is_meant(key, server.key, server.by_default):
                chosen_servers[server.name] = server
        for worker in worker_plans:
            if _is_meant(key, worker.key, worker.by_default):
                chosen_workers[worker.name] = worker
    return list(chosen_servers.values()), list(chosen_workers.values())


def _is_meant(asked: str, key: str, by_default: bool) -> bool:
    return asked in (key, "*") or (not asked and by_default)
