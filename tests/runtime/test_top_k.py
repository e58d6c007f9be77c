"""Where requests get the largest logits in place of whole rows."""

from __future__ import annotations

import pytest

import llmir
from llmir.engine.from_artifact import open_artifact
from llmir.runtime.device_facts import DeviceFacts


def test_a_software_device_gives_whole_rows(
    llama_everywhere: llmir.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are in the host's memory; of any other device the largest logits are fetched."""
    entries = {m.target: m.entry_points for m in llama_everywhere.manifest.modules}
    assert "step_topk" in entries["vulkan"]
    opened = open_artifact(llama_everywhere, device="vulkan://0", kv_cache_memory_bytes=4 << 20)
    for kind, expected in (("cpu", 0), ("integrated-gpu", 64), ("discrete-gpu", 64)):
        facts = DeviceFacts(kind=kind)
        monkeypatch.setattr("llmir.runtime.session.facts_of", lambda uri, facts=facts: facts)
        assert opened.runner.top_k == expected
