"""From the plan of a side to one that can be started: environments installed, models made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmir.artifact_writer import locked
from llmir.bench.peers.base import Environment, MadeModel, Side, SidePlan
from llmir.bench.peers.environments import StageHook, ensure
from llmir.bench.peers.process import SERVE, SideError, SideProcess
from llmir.digests import DigestMemo


class Preparer:
    """Prepares the sides of one model.  Makes nothing twice, now or in a later run."""

    def __init__(self, model: Path, peers_dir: Path, on_stage: StageHook) -> None:
        self._model = model.absolute()
        self._peers_dir = peers_dir
        self._on_stage = on_stage
        digest = DigestMemo.default().sha256(self._model)
        self._made_dir = peers_dir / "models" / digest[:16]

    def side(self, plan: SidePlan, num_threads: int) -> Side:
        """Install and make what the plan needs.

        Raises OptionError, DeviceError, SideError if the model cannot be made, OSError.
        """
        python = self.python(plan.environment)
        model = self.model_file(plan.model)
        return Side(
            name=plan.name,
            command=worker_command(python, plan.worker, plan.variables),
            load={
                "do": "load",
                "spec": {**plan.spec, "model": str(model), "threads": num_threads},
            },
            log=self.log(plan.name),
            is_same_file=plan.is_same_file,
        )

    def python(self, environment: Environment) -> Path:
        """The Python of an environment, which is installed if it is not there."""
        return ensure(environment, self._peers_dir, self._on_stage)

    def model_file(self, made: MadeModel | None) -> Path:
        """The model in a form, which is made if it is not there; None: the file itself."""
        if made is None:
            return self._model
        place = self._made_dir / made.form
        with locked(place):  # another run may be making it
            return self._make(made, place)

    def _make(self, made: MadeModel, place: Path) -> Path:
        if place.exists():
            return place
        python = self.python(made.environment)
        # Whole or not at all: written beside and renamed.
        half = self._made_dir / f"half-{made.form}"
        if half.is_dir():
            shutil.rmtree(half)
        half.unlink(missing_ok=True)
        spec = {**made.spec, "source": str(self._model), "place": str(half)}
        maker = Side(
            name=made.form,
            command=worker_command(python, made.worker, {}),
            load={"do": "make", "spec": spec},
            log=self.log(f"make-{made.form}"),
        )
        with self._on_stage(f"making {made.form}"):
            try:
                SideProcess(maker).close()
            except SideError as error:
                raise SideError(f"cannot make {made.form}: {error}") from error
            os.rename(half, place)
        return place

    def log(self, name: str) -> Path:
        """Where a process of this name writes what it says."""
        return self._peers_dir / "logs" / f"{name.replace(' ', '-')}.log"


def worker_command(
    python: Path | str, worker: str, variables: Mapping[str, Any]
) -> tuple[str, ...]:
    """The command of a side's process."""
    settings = [f"{name}={value}" for name, value in variables.items()]
    return ("env", *settings, str(python), str(SERVE), worker)
