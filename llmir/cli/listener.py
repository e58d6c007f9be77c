"""The socket that a server listens on."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from llmir.errors import OptionError

BACKLOG = 2048
"""Connections that may wait to be taken: uvicorn's."""


@contextmanager
def bind(host: str, port: int, uds: str | None) -> Iterator[socket.socket]:
    """A socket with its address.

    One of TCP does not listen yet.  A Unix socket does: from now on whoever connects waits for
    the server, and a second server sees that the path is taken.  Its file is removed in the end.

    Raises OSError, which names the address; OptionError for a host that there is not.
    """
    if uds is None:
        with _bind_tcp(host, port) as listener:
            yield listener
        return
    with _bind_unix(uds) as listener:
        own = os.stat(uds)
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(uds), own):
                    os.unlink(uds)


def address(listener: socket.socket) -> str:
    """Where a client finds it."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind_tcp(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:  # the latter of a name that is too long
        reason = getattr(error, "strerror", None) or "not a host name"
        raise OptionError(f"--host {host}: {reason}") from error
    family, _, _, _, address = found[0]
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _bound(listener, address, f"{host}:{port}")


def _bind_unix(path: str) -> socket.socket:
    if _is_stale(path):
        os.unlink(path)
    listener = _bound(socket.socket(socket.AF_UNIX), path, path)
    listener.listen(BACKLOG)
    return listener


def _bound(listener: socket.socket, address: Any, name: str) -> socket.socket:
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, name) from error
    return listener


def _is_stale(path: str) -> bool:
    """Whether there is a socket at this path of a server that has ended and left it behind.

    Raises OSError: a server answers there.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False  # binding says that there is something else
    except OSError:
        return False  # nothing is there; or binding says why nothing can be
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)  # a server that takes no connections now is one too
        try:
            client.connect(path)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
    raise OSError(errno.EADDRINUSE, "another server listens on this socket", path)
