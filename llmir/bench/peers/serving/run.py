"""A whole comparison of servers: sides prepared, every scenario's rounds, rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from llmir.artifact import Artifact
from llmir.bench.peers import llmir_side
from llmir.bench.peers.base import Side, SidePlan
from llmir.bench.peers.environments import StageHook
from llmir.bench.peers.metrics import Metric
from llmir.bench.peers.pool import FIRST_GUESS_BYTES
from llmir.bench.peers.prepare import Preparer
from llmir.bench.peers.process import SideError
from llmir.bench.peers.serving import llmir_server
from llmir.bench.peers.serving.base import Scenario, Server, ServerPlan
from llmir.bench.peers.serving.offline_scenarios import Offline
from llmir.bench.peers.serving.rounds import Alternation, AnySide
from llmir.bench.peers.serving.rows import ServingRow, make_rows
from llmir.bench.serve.datasets import Vocabulary
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import LlmirError
from llmir.host import num_cores

RowsHook = Callable[[Sequence[ServingRow]], None]


class Comparison:
    """The sides of one model; `run` measures.

    artifact_for     "" → llmir's artifact; a variant's name → that variant's
    serve_arguments  the same → further arguments of `llmir serve`
    failed           side → why it could not be prepared; it is in no row
    """

    def __init__(
        self,
        model: Path,
        servers: Sequence[ServerPlan],
        workers: Sequence[SidePlan],
        artifact_for: Callable[[str], Artifact],
        *,
        num_threads: int | None,
        serve_arguments: Mapping[str, Sequence[str]],
        peers_dir: Path,
        on_stage: StageHook,
    ) -> None:
        self._servers = servers
        self._workers = workers
        self._artifact_for = artifact_for
        self._num_threads = num_threads
        self._serve_arguments = serve_arguments
        self._peers_dir = peers_dir
        self._on_stage = on_stage
        self._first_guess_bytes = max(FIRST_GUESS_BYTES, 2 * model.stat().st_size)
        self._preparer = Preparer(model, peers_dir, on_stage)
        self._prepared: dict[str, AnySide | None] = {}
        self.failed: dict[str, str] = {}

    def run(
        self, scenarios: Sequence[Scenario], alternations: int, on_rows: RowsHook
    ) -> list[ServingRow]:
        """Measure.  on_rows is given what there is so far, after every alternation."""
        chosen = [self._sides_for(scenario) for scenario in scenarios]
        done: dict[str, list[ServingRow]] = {}
        alternation = Alternation(self._vocabulary(), first_guess_bytes=self._first_guess_bytes)
        try:
            for scenario, sides in zip(scenarios, chosen, strict=True):
                for cells in alternation.run(scenario, sides, alternations, self._on_stage):
                    done[scenario.name] = make_rows(scenario, cells)
                    on_rows([row for rows in done.values() for row in rows])
        finally:
            alternation.close()
        return [row for rows in done.values() for row in rows]

    def _vocabulary(self) -> Vocabulary:
        tokenizer = Tokenizer.from_dir(self._artifact_for("").path)
        return Vocabulary.of_tokenizer(
            lambda text: tokenizer.encode(text, add_special_tokens=False)
        )

    def _sides_for(self, scenario: Scenario) -> list[AnySide]:
        """llmir's, its variants', the peers'."""
        own: list[AnySide | None]
        if scenario.kind == "server":
            names = ("", *scenario.variants)
            own = [self._once(f"own {name}", partial(self._own_server, name)) for name in names]
            peers = [
                self._once(f"server {plan.name}", partial(self._server, plan))
                for plan in self._servers
                if scenario.has_peers
            ]
        else:
            assert isinstance(scenario, Offline)
            own = [self._own_worker(scenario)]
            peers = [
                self._once(f"worker {plan.name}", partial(self._worker, plan))
                for plan in self._workers
                if scenario.has_peers
            ]
        return [side for side in (*own, *peers) if side is not None]

    def _once(self, key: str, make: Callable[[], AnySide | None]) -> AnySide | None:
        if key not in self._prepared:
            self._prepared[key] = make()
        return self._prepared[key]

    def _own_server(self, variant: str) -> Server:
        name = variant or llmir_side.LLMIR
        return llmir_server.server(
            self._artifact_for(variant),
            name=name,
            num_threads=self._num_threads,
            arguments=self._serve_arguments.get(variant, ()),
            log=self._preparer.log(f"serve-{name}"),
        )

    def _own_worker(self, scenario: Offline) -> Side:
        """llmir offline, with KV pages for all of a scenario's requests."""
        metric = Metric(
            batch=scenario.num_requests, depth=scenario.prompt_tokens + scenario.output_tokens
        )
        threads = self._num_threads or num_cores()
        return llmir_side.side(self._artifact_for(""), [metric], threads, self._peers_dir / "logs")

    def _server(self, plan: ServerPlan) -> Server | None:
        """The side; None if it cannot be had, and `failed` says why: the others go on."""
        try:
            return self._made_server(plan)
        except (SideError, LlmirError, OSError) as error:
            self.failed[plan.name] = str(error)
            return None

    def _made_server(self, plan: ServerPlan) -> Server:
        python = self._preparer.python(plan.environment)
        places = {
            "{here}": str(python.parent.parent),
            "{python}": str(python),
            "{model}": str(self._preparer.model_file(plan.model)),
            "{threads}": str(self._num_threads or num_cores()),
        }
        variables = dict(plan.variables)
        if plan.overlay:
            variables["PYTHONPATH"] = str(self._overlay(plan))
        return Server(
            name=plan.name,
            command=(
                "env",
                *(f"{name}={value}" for name, value in variables.items()),
                *(_filled(word, places) for word in plan.command),
            ),
            log=self._preparer.log(plan.name),
            versions=plan.versions,
            is_same_file=plan.is_same_file,
        )

    def _overlay(self, plan: ServerPlan) -> Path:
        """The directory of what the side's Python is to find besides its environment."""
        place = self._peers_dir / "overlays" / plan.environment.name
        for name, text in plan.overlay.items():
            file = place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return place

    def _worker(self, plan: SidePlan) -> Side | None:
        try:
            return self._preparer.side(plan, self._num_threads or num_cores())
        except (SideError, LlmirError, OSError) as error:
            self.failed[plan.name] = str(error)
            return None


def _filled(word: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        word = word.replace(name, value)
    return word
