"""What the commands say, and exit with, when a device has too little memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli.helpers import Llmir


@pytest.mark.parametrize(
    "command", [("run", "Hello"), ("serve", "--port", "0")], ids=lambda c: c[0]
)
def test_memory_that_holds_no_cache(
    command: tuple[str, ...], llmir: Llmir, tiny_artifact: Path
) -> None:
    name, *rest = command
    code, message = llmir.error(name, tiny_artifact, *rest, "--device-memory-fraction", "0.000001")
    assert code == 6
    assert re.match(
        r"local-task is out of memory for KV pages within 1e-06 of its memory\. Wanted: weights "
        r"[\d.]+ MiB, KV pages 0\.0 MiB, tensors of a step about [\d.]+ MiB; the device has "
        r"[\d.]+ MiB",
        message,
    ), message
