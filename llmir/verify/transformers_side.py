"""The reference `transformers`: the model's own file in float32, computed by torch.

Shape legend: T tokens of a sequence, V vocabulary.

transformers, torch and gguf are not among what llmir installs; they are imported when used.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from llmir.errors import ModelError, OptionError
from llmir.runtime.base import F32
from llmir.verify.sides import SidePlan
from llmir.verify.transformers_model import from_directory, from_gguf

NAME = "transformers"
_PACKAGES = (NAME, "torch", "gguf")


class TransformersSide:
    """A GGUF file or a Hugging Face directory in float32, with eager attention, on the CPU.

    Raises ModelError if transformers cannot read the file.
    """

    def __init__(self, model: Path) -> None:
        from transformers.utils import logging

        logging.disable_progress_bar()  # this command's streams are its own
        read = from_gguf if model.is_file() else from_directory
        try:
            self._model = read(model)
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise ModelError(f"transformers cannot read {model}: {error}") from error

    def answer(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """See Side.answer; a prompt at a time, with transformers' own KV cache."""
        return [self._answer(list(ids), num_tokens) for ids in prompts]

    def _answer(self, token_ids: list[int], num_tokens: int) -> list[int]:
        import torch

        found: list[int] = []
        cache = None
        given = token_ids
        with torch.no_grad():
            while len(found) < num_tokens:
                out = self._model(
                    torch.tensor([given]), past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                cache = out.past_key_values
                given = [int(out.logits[0, -1].argmax())]
                found += given
        return found

    def logits(self, token_ids: Sequence[int]) -> F32:
        """See Side.logits."""
        import torch

        with torch.no_grad():
            found: F32 = self._model(torch.tensor([list(token_ids)])).logits[0].float().numpy()
        return found


def transformers_plan(model: Path | None) -> SidePlan:
    """The side of a model's own file.  Raises OptionError for no file, or without the packages."""
    if model is None:
        raise OptionError(
            "the reference transformers needs the model that the artifact was compiled from, a "
            "GGUF file or a Hugging Face directory: give it with --reference-model"
        )
    if not model.exists():
        raise OptionError(f"reference-model: {model}: no such file or directory")
    wanted = _PACKAGES if model.is_file() else _PACKAGES[:2]
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise OptionError(
            f"the reference transformers needs {', '.join(missing)}, not installed here: "
            f"pip install {' '.join(missing)}"
        )
    return SidePlan(
        name=NAME,
        about=f"{model.name} in float32",
        is_exact=True,
        open=lambda: TransformersSide(model),
    )


def transformers_versions() -> dict[str, str]:
    """Of what computes the reference, as far as it is installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
