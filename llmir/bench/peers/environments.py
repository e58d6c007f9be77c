"""The peers' virtual environments: made once, outside any checkout, told apart by a stamp.

The stamp is a file that says what was installed; it is written last.  A directory with the
stamp of the same plan is used as it is.  One of ours with another stamp is made anew; one
without any is somebody's, or was left half made, and is not touched.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from llmir.artifact_writer import locked
from llmir.bench.peers.base import Environment
from llmir.errors import DeviceError, OptionError
from llmir.host import num_cores

STAMP = "llmir-peer.json"
HALF_MADE = ".half-made"
StageHook = Callable[[str], AbstractContextManager[Any]]


def default_peers_dir() -> Path:
    """Where the environments and the peers' model files go unless told otherwise."""
    return Path.home() / ".cache" / "llmir-peers"


def stamp_of(environment: Environment) -> dict[str, Any]:
    """What the stamp of an environment made by this plan says."""
    plan = json.loads(json.dumps(dataclasses.asdict(environment)))
    if not environment.steps:  # as the stamps were before there were any
        del plan["steps"]
    return {**plan, "python": f"{sys.version_info.major}.{sys.version_info.minor}"}


def commands(environment: Environment, here: Path) -> list[list[str]]:
    """The commands that make it, in this order."""
    build = [f"{name}={value.format(here=here)}" for name, value in environment.build.items()]
    pip = ["env", *build, str(here / "bin" / "python"), "-m", "pip", "install"]
    installs = [[*pip, "--disable-pip-version-check", *args] for args in environment.installs]
    places = {"here": here, "cores": num_cores()}
    steps = [[word.format(**places) for word in step] for step in environment.steps]
    return [[sys.executable, "-m", "venv", str(here)], *installs, *steps]


def ensure(environment: Environment, peers_dir: Path, on_stage: StageHook) -> Path:
    """The environment's Python, made if it is not there.

    Raises OptionError if something else is in its place; DeviceError if an installation
    fails, with the log's name.
    """
    here = peers_dir / environment.name
    with locked(here):  # another run may be making it
        return _ensured(environment, here, on_stage)


def _ensured(environment: Environment, here: Path, on_stage: StageHook) -> Path:
    stamp = here / STAMP
    if stamp.is_file() and json.loads(stamp.read_text()) == stamp_of(environment):
        return here / "bin" / "python"
    if here.exists() and not stamp.is_file() and not (here / HALF_MADE).is_file():
        raise OptionError(
            f"{here} is no environment of this command (it holds no {STAMP}); "
            "remove it, or give another --peers-dir"
        )
    with on_stage(f"installing {environment.name}"):
        if here.exists():
            shutil.rmtree(here)
        here.mkdir(parents=True)
        (here / HALF_MADE).touch()
        for name, text in environment.files.items():
            (here / name).write_text(text, encoding="utf-8")
        _run_all(environment, here, here.parent / "logs" / f"install-{environment.name}.log")
        stamp.write_text(json.dumps(stamp_of(environment), indent=1) + "\n", encoding="utf-8")
        (here / HALF_MADE).unlink()
    return here / "bin" / "python"


def _run_all(environment: Environment, here: Path, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        for command in commands(environment, here):
            done = subprocess.run(command, stdout=out, stderr=out, check=False)
            if done.returncode != 0:
                raise DeviceError(
                    f"installing {environment.name} failed with status {done.returncode} "
                    f"({log.name} says why): {' '.join([Path(command[0]).name, *command[1:]])}"
                )
