"""llmir bench serve: load an OpenAI-compatible server and measure what comes back."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmir.cli.bench_common import command_line, json_file_option
from llmir.cli.bench_serve_options import HeaderList, JsonObject, NumberList, load_options
from llmir.cli.output import print_json
from llmir.cli.progress import is_watched
from llmir.errors import OptionError, RequestError

if TYPE_CHECKING:
    from llmir.bench.serve.client import Endpoint
    from llmir.bench.serve.datasets import Dataset, SampleRequest
    from llmir.bench.serve.load import Loaded

EPILOG = """\b
Examples:
  llmir bench serve --base-url http://127.0.0.1:8000 --max-concurrency 16 --num-prompts 64
  llmir bench serve --base-url http://127.0.0.1:8000 --request-rate 4 --dataset-name sharegpt
  llmir bench serve --base-url http://127.0.0.1:8000 --random-input-len 35 \\
      --random-prefix-len 256 --goodput ttft:500 tpot:50 --json result.json --plot result.svg
"""

# A result is filed and shown; these may hold what gives access.
_SECRET = ("api_key", "headers", "extra_body")


@click.command(epilog=EPILOG)
@click.option(
    "--base-url",
    default="http://127.0.0.1:8000",
    show_default=True,
    help="The server, with or without /v1.",
)
@click.option("--model", default="", help="[default: the first that the server has]")
@click.option(
    "--backend",
    type=click.Choice(["openai", "openai-chat"]),
    default="openai",
    show_default=True,
    help="Which API: /v1/completions, or /v1/chat/completions.",
)
@click.option("--api-key", help="Sent as a bearer token.")
@click.option("--header", "headers", type=HeaderList(), multiple=True, metavar="NAME=VALUE")
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A directory with tokenizer.json: prompts are ids of its words.  [default: the "
    "server's /tokenize; text, where it has none]",
)
@click.option(
    "--ignore-eos/--no-ignore-eos",
    default=None,
    help="Have answers go on to their full length.  [default: where the server takes it]",
)
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--top-p", type=float)
@click.option("--extra-body", type=JsonObject(), help="Further fields of each request, as JSON.")
@load_options
@click.option(
    "--percentile-metrics",
    default="ttft,tpot,itl,e2el",
    show_default=True,
    help="Which of these have a line.",
)
@click.option(
    "--metric-percentiles",
    type=NumberList(0, 100),
    default="99",
    show_default=True,
    help="Which percentiles they have, such as 50,90,99.9.",
)
@click.option(
    "--goodput",
    "goodputs",
    multiple=True,
    metavar="METRIC:MS …",
    help="Count the requests that keep to these bounds of ttft, tpot or e2el in milliseconds.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(0, min_open=True),
    default=3600.0,
    show_default=True,
    help="Seconds after which a request counts as failed.",
)
@click.option(
    "--ready-check-timeout-sec",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Seconds to wait for a server that is still loading.",
)
@click.option("--allow-failures", is_flag=True, help="Exit with 0 even if requests failed.")
@json_file_option
@click.option("--save-detailed", is_flag=True, help="Have every request's times in the JSON.")
@click.option("--plot", "plot_file", metavar="FILE.svg", help="Draw the latencies as SVG.")
@click.argument("bounds", nargs=-1, metavar="")
@click.pass_context
def serve(ctx: click.Context, **given: Any) -> None:
    """Load an OpenAI-compatible server with requests, and measure the answers as they stream.

    Requests are made from --seed, and arrive at --request-rate or as soon as one of
    --max-concurrency is free.  The names in the JSON are those of `vllm bench serve`.
    The exit code is not 0 if a request failed.
    """
    from llmir.bench.serve import metrics as figures
    from llmir.bench.serve import plot, report
    from llmir.bench.serve.datasets import make_requests
    from llmir.bench.serve.probe import Probe

    names = _metric_names(given["percentile_metrics"])
    goodput = figures.parse_goodput(_goodput_texts(given["goodputs"], given["bounds"]))
    plot_file = _svg(given["plot_file"])
    dataset = _dataset(given)
    probed = Probe(
        _endpoint(given),
        tokenizer_dir=given["tokenizer"],
        must_ignore_eos=given["ignore_eos"],
        ready_timeout_s=given["ready_check_timeout_sec"],
    ).run()
    requests, warmups = make_requests(
        dataset, given["num_prompts"], probed.vocabulary, given["seed"], given["warmup"]
    )
    loaded = asyncio.run(_load(probed.endpoint, requests, warmups, given))
    percentiles = given["metric_percentiles"]
    summary = figures.summarise(
        loaded.results,
        loaded.duration_s,
        metrics=names,
        percentiles=percentiles,
        goodput=goodput,
    )
    document = report.document(
        summary,
        loaded,
        probed.endpoint,
        request_rate=given["request_rate"],
        burstiness=given["burstiness"],
        max_concurrency=given["max_concurrency"],
        notes=probed.notes,
        more={
            "command": command_line(ctx, without=_SECRET),
            **(figures.details(loaded.results) if given["save_detailed"] else {}),
        },
    )
    _write(document, given["json_file"])
    if given["json_file"] != "-":
        click.echo(
            report.text(summary, loaded, metrics=names, percentiles=percentiles, notes=probed.notes)
        )
    if plot_file is not None:
        title = f"{probed.endpoint.model}: {_described(given)}"
        plot_file.write_text(plot.draw(loaded.results, title), encoding="utf-8")
    if loaded.failed and not given["allow_failures"]:
        raise RequestError(
            f"{len(loaded.failed)} of {len(loaded.results)} requests failed, the first: "
            f"{loaded.failed[0].error}"
        )


async def _load(
    endpoint: Endpoint,
    requests: Sequence[SampleRequest],
    warmups: Sequence[SampleRequest],
    given: dict[str, Any],
) -> Loaded:
    import numpy as np

    from llmir.bench.serve.arrivals import arrival_times
    from llmir.bench.serve.load import Client
    from llmir.engine.progress import progress_bar

    # The arrivals are not drawn from the dataset's generator: another rate, the same requests.
    rng = np.random.default_rng([given["seed"], 1])
    arrivals = arrival_times(
        len(requests), given["request_rate"], given["arrival"], given["burstiness"], rng
    )
    client = Client(endpoint)
    try:
        warmed = await client.load(warmups, max_concurrency=given["max_concurrency"])
        if warmed.failed:
            raise RequestError(f"a warm-up request failed: {warmed.failed[0].error}")
        with progress_bar("Answered", len(requests), is_watched()) as advance:
            return await client.load(
                requests,
                arrivals.tolist(),
                max_concurrency=given["max_concurrency"],
                on_done=lambda result: advance(),
            )
    finally:
        await client.close()


def _endpoint(given: dict[str, Any]) -> Endpoint:
    from llmir.bench.serve.client import Endpoint

    base_url = given["base_url"].rstrip("/")
    if "://" not in base_url:
        base_url = f"http://{base_url}"
    headers = dict(given["headers"])
    if given["api_key"]:
        headers["Authorization"] = f"Bearer {given['api_key']}"
    return Endpoint(
        base_url=base_url if base_url.endswith("/v1") else f"{base_url}/v1",
        model=given["model"],
        backend=given["backend"],
        headers=headers,
        temperature=given["temperature"],
        top_p=given["top_p"],
        extra_body=given["extra_body"] or {},
        timeout_s=given["request_timeout"],
    )


def _dataset(given: dict[str, Any]) -> Dataset:
    from llmir.bench.serve import datasets

    def of(prefix: str, *names: str) -> dict[str, Any]:
        return {name: given[f"{prefix}_{name}"] for name in names}

    if given["dataset_name"] == "random":
        return datasets.RandomDataset(
            **of("random", "input_len", "output_len", "range_ratio", "prefix_len")
        )
    if given["dataset_name"] == "prefix_repetition":
        return datasets.PrefixRepetitionDataset(
            **of("prefix_repetition", "prefix_len", "suffix_len", "num_prefixes", "output_len")
        )
    return datasets.ShareGptDataset()


def _metric_names(text: str) -> list[str]:
    from llmir.bench.serve.metrics import METRICS

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise OptionError(
                f"--percentile-metrics: no metric {name!r}; there are {', '.join(METRICS)}"
            )
    return list(dict.fromkeys(names))


def _goodput_texts(goodputs: Sequence[str], bounds: Sequence[str]) -> list[str]:
    """The bounds of --goodput: vLLM's command takes several after one option."""
    if bounds and not goodputs:
        raise click.UsageError(f"unexpected argument {bounds[0]!r}", click.get_current_context())
    return [part for text in (*goodputs, *bounds) for part in text.replace(",", " ").split()]


def _svg(name: str | None) -> Path | None:
    if name is not None and not name.endswith(".svg"):
        raise OptionError(f"--plot {name}: drawings are SVG: give a name that ends in .svg")
    return None if name is None else Path(name)


def _described(given: dict[str, Any]) -> str:
    rate = given["request_rate"]
    parts = [
        f"{given['num_prompts']} {given['dataset_name']} requests",
        "at once" if math.isinf(rate) else f"{rate:g} per second ({given['arrival']})",
    ]
    if given["max_concurrency"]:
        parts.append(f"{given['max_concurrency']} at a time")
    return ", ".join(parts)


def _write(document: dict[str, Any], json_file: str | None) -> None:
    if json_file == "-":
        print_json(document)
    elif json_file is not None:
        Path(json_file).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
