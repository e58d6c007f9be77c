"""The part of generation_config.json that serving honours: EOS ids and default sampling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmir.engine.sampling_params import SamplingParams
from llmir.errors import ArtifactCorruptError

SAMPLING_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Fields of generation_config.json and the sampling parameters they are defaults of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What a model's authors say about generating with it.

    eos_token_ids  ids that end an answer
    sampling       defaults used for requests that bring no SamplingParams of their own
    """

    eos_token_ids: tuple[int, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GenerationConfig:
        """Read the dict that generation_config.json holds.

        An explicit `"do_sample": false` means greedy.  Where the key is absent the
        sampling fields count as they stand, as in vLLM.
        """
        eos = data.get("eos_token_id")
        if eos is None:
            ids: tuple[int, ...] = ()
        elif isinstance(eos, int) and not isinstance(eos, bool):
            ids = (eos,)
        elif isinstance(eos, list) and all(type(item) is int for item in eos):
            ids = tuple(eos)
        else:
            raise ArtifactCorruptError(
                f"generation_config.json: eos_token_id must be an id or a list of ids, not {eos!r}"
            )
        sampling = {
            name: data[key] for key, name in SAMPLING_FIELDS.items() if data.get(key) is not None
        }
        if data.get("do_sample") is False:
            sampling["temperature"] = 0.0
        return cls(eos_token_ids=ids, sampling=sampling)

    @classmethod
    def from_dir(cls, directory: str | Path) -> GenerationConfig:
        """Read `directory`/generation_config.json; without one there are no EOS ids or defaults."""
        path = Path(directory) / "generation_config.json"
        if not path.exists():
            return cls()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtifactCorruptError(f"{path} is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ArtifactCorruptError(f"{path} must hold a JSON object")
        return cls.from_json(data)

    def default_params(self) -> SamplingParams:
        """SamplingParams with this model's defaults.  Raises RequestError on a bad value."""
        return SamplingParams(**self.sampling)
