"""Unix sockets that a server finds at the path it is to listen on."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llmir.cli.listener import address, bind

KILLED = """
import os, signal, sys
from llmir.cli.listener import bind
with bind("", 0, sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    return client


def refused(path: Path, why: str) -> None:
    with pytest.raises(OSError, match=why), bind("", 0, str(path)):
        pass


def test_what_a_killed_server_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert ended.returncode == -9
    assert stat.S_ISSOCK(path.stat().st_mode)
    with bind("", 0, str(path)) as listener, connect(path) as client:
        assert address(listener) == f"unix:{path}"
        client.sendall(b"x")
        with listener.accept()[0] as taken:
            assert taken.recv(1) == b"x"
    assert not path.exists()


def test_a_server_that_lives_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with bind("", 0, str(path)):  # which takes no connections yet
        refused(path, r"another server listens on this socket: .*a\.sock")
        connect(path).close()
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(str(path))
        full.listen(0)
        with connect(path):
            refused(path, "another server listens")


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("mine")
    refused(path, r"Address already in use: .*a\.sock")
    assert path.read_text() == "mine"


def test_the_socket_of_who_came_later_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with bind("", 0, str(path)):
        path.unlink()
        with bind("", 0, str(path)):
            pass
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()
