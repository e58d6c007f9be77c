"""What the bodies of all requests have in common: strict types, and names that are known.

A parameter is either a field, with what it may be; or in `refused`, with the reason; or it is
unknown.  Nothing is accepted and ignored but what has no effect by OpenAI's own definition, and
nulls in what clients send back as it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

_CONFIG = ConfigDict(
    strict=True,
    extra="forbid",
    allow_inf_nan=False,
    # `model_names` and the like are parameters here.
    protected_namespaces=(),
)


class RequestModel(BaseModel):
    """A JSON object of a request.  null stands for a parameter that is not given."""

    model_config = _CONFIG

    refused: ClassVar[Mapping[str, str]] = {}
    """Names of parameters that others have and llmir has not, and what to say of them."""

    unknown_nulls: ClassVar[bool] = False
    """Whether a name that nobody knows may come with null."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in data:
            if name in known:
                continue
            if name not in cls.refused:
                if cls.unknown_nulls and data[name] is None:
                    continue
                raise PydanticCustomError("unknown_parameter", "unknown", {"param": name})
            if data[name] is not None:
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "not supported",
                    {"param": name, "why": cls.refused[name]},
                )
        # Clients write null for what they leave out, of what is refused as well.
        return {name: value for name, value in data.items() if name in known}


class SentBack(RequestModel):
    """A part of an answer, or of what may stand beside one in a conversation.

    Clients' classes of answers have names that llmir's answers do not, `annotations` or `phase`,
    and write them as null when the answer is put into the next request.
    """

    model_config = ConfigDict(
        **_CONFIG, json_schema_extra={"additionalProperties": {"type": "null"}}
    )

    unknown_nulls: ClassVar[bool] = True
