"""A server's process and what its group takes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from llmir.bench.peers.process import SideError
from llmir.bench.peers.serving import groups
from llmir.bench.peers.serving.base import Server
from llmir.bench.peers.serving.process import ServerProcess

SCRIPT = Path(__file__).parent / "server_script.py"


def server(tmp_path: Path, *fault: str, name: str = "fake", is_own: bool = False) -> Server:
    return Server(
        name=name,
        command=(sys.executable, str(SCRIPT), "{port}", *fault),
        log=tmp_path / "logs" / f"{name}.log",
        versions={"fake": "1.0"},
        is_own=is_own,
    )


def states(group: int) -> set[str]:
    return {(p / "stat").read_text().rpartition(")")[2].split()[0] for p in groups.members(group)}


def test_it_starts_is_stopped_with_its_children_and_ends_with_them(tmp_path: Path) -> None:
    process = ServerProcess(server(tmp_path, "slow"))
    try:
        assert 0.3 <= process.load_s < 20
        group = process.group
        assert len(groups.members(group)) == 2
        deadline = time.monotonic() + 5
        while states(group) != {"T"} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert states(group) == {"T"}
        assert (groups.peak_bytes(group) or 0) > 5_000_000
        process.resume()
        process.check()
        assert "T" not in states(group)
    finally:
        process.close()
    # The child is an orphan whom somebody else waits for.
    deadline = time.monotonic() + 5
    while states(group) - {"Z"} and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not states(group) - {"Z"}


@pytest.mark.parametrize(
    ("fault", "said"),
    [("dies", "ended with status 3; see fake.log"), ("refuses", "refused: status 400: no")],
)
def test_one_that_does_not_come_up_says_why(tmp_path: Path, fault: str, said: str) -> None:
    with pytest.raises(SideError, match=said):
        ServerProcess(server(tmp_path, fault))


def test_the_memory_and_time_of_a_group_are_those_of_its_processes() -> None:
    group = os.getpgrp()
    own = os.getpid()
    assert Path("/proc") / str(own) in groups.members(group)
    before = groups.cpu_seconds(group)
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert groups.cpu_seconds(group) - before >= 0.15
    status = (Path("/proc") / str(own) / "status").read_text().split("VmHWM:")[1]
    assert (groups.peak_bytes(group) or 0) >= int(status.split()[0]) * 1024
    assert groups.members(2**30) == []
    assert groups.peak_bytes(2**30) is None
