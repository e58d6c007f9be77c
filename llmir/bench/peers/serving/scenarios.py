"""The scenarios by name; every side gets the same prompts in the same alternation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from llmir.bench.peers.serving.base import Scenario
from llmir.bench.peers.serving.offline_scenarios import Offline, Sampled
from llmir.bench.peers.serving.server_scenarios import (
    ClosedLoad,
    FirstAnswer,
    MixedLoad,
    RepeatedPrompt,
)
from llmir.errors import UnknownNameError


def _closed(name: str, clients: int, requests: int, shared: int, own: int) -> ClosedLoad:
    return ClosedLoad(
        name=name,
        num_clients=clients,
        num_requests=requests,
        shared_tokens=shared,
        own_tokens=own,
        output_tokens=64,
    )


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        FirstAnswer(name="start"),
        _closed("shared", 16, 64, 256, 35),
        _closed("unshared", 16, 64, 0, 291),
        _closed("one_client", 1, 8, 0, 128),
        RepeatedPrompt(name="repeated_prompt", prompt_tokens=2000, num_repeats=3),
        MixedLoad(
            name="mixed",
            num_clients=8,
            own_tokens=64,
            output_tokens=128,
            long_tokens=2000,
            num_long=6,
            long_per_s=0.25,
        ),
        Offline(name="offline", num_requests=64, prompt_tokens=128, output_tokens=64),
        Sampled(
            name="sampled",
            num_requests=32,
            prompt_tokens=128,
            output_tokens=64,
            temperature=0.8,
            top_p=0.95,
        ),
    )
}

# The same with few tokens: whether everything works, and no figures.
SMOKE: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        FirstAnswer(name="start"),
        dataclasses.replace(_closed("shared", 4, 8, 32, 8), output_tokens=8),
        dataclasses.replace(_closed("unshared", 4, 8, 0, 40), output_tokens=8),
        dataclasses.replace(_closed("one_client", 1, 2, 0, 16), output_tokens=8),
        RepeatedPrompt(name="repeated_prompt", prompt_tokens=100, num_repeats=2),
        MixedLoad(
            name="mixed",
            num_clients=2,
            own_tokens=8,
            output_tokens=16,
            long_tokens=100,
            num_long=2,
            long_per_s=2,
        ),
        Offline(name="offline", num_requests=4, prompt_tokens=16, output_tokens=8),
        Sampled(
            name="sampled",
            num_requests=4,
            prompt_tokens=16,
            output_tokens=8,
            temperature=0.8,
            top_p=0.95,
        ),
    )
}


def select(
    names: Sequence[str], *, is_smoke: bool = False, long_per_s: float | None = None
) -> list[Scenario]:
    """The scenarios of these names, all without any.

    long_per_s: how often long prompts arrive in `mixed`; None: as it is.
    Raises UnknownNameError.
    """
    known = SMOKE if is_smoke else SCENARIOS
    for name in names:
        if name not in known:
            raise UnknownNameError("scenario", name, known)
    found = [known[name] for name in names or known]
    if long_per_s is None:
        return found
    return [
        dataclasses.replace(s, long_per_s=long_per_s) if isinstance(s, MixedLoad) else s
        for s in found
    ]
