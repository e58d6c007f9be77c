"""Text to token ids and back, over the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, overload

import tokenizers

from llmir.engine.chat_template import render_chat
from llmir.engine.token_bounds import TokenBound, token_bound
from llmir.errors import ArtifactCorruptError, ArtifactNotFoundError, RequestError, UnknownNameError

LONG_TEXT = 2000
"""Characters that take about a millisecond to tokenize."""

LONG_OUTPUT = 2000
"""Tokens that take about a millisecond to make text of."""

SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""Names under which tokenizer_config.json lists tokens and chat templates read them."""


class Tokenizer:
    """A `tokenizers.Tokenizer` with what tokenizer_config.json says about it.

    Args:
        tokenizer: the library's tokenizer; its truncation and padding are switched off.
        config: the contents of tokenizer_config.json.
        chat_template: overrides the config's.

    Attributes:
        special_tokens: name -> text, for those of SPECIAL_TOKENS that the config sets.
        special_ids: ids that `skip_special_tokens` leaves out.
        bos_token_id, eos_token_id: None where there is no such token.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        config: Mapping[str, Any] | None = None,
        *,
        chat_template: str | None = None,
    ) -> None:
        config = config or {}
        self.backend = tokenizer
        # A tokenizer.json keeps the truncation of whoever saved it; a prompt is never cut.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.special_tokens = {
            name: _token_text(config[name]) for name in SPECIAL_TOKENS if config.get(name)
        }
        self.special_ids = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_id = self._special_id("eos_token")
        self.chat_templates = _templates(config.get("chat_template"))
        if chat_template is not None:
            self.chat_templates = {"default": chat_template}
        self.token_text = lru_cache(maxsize=65536)(self._token_text)
        anchor = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._anchor = (anchor, self.decode(anchor, skip_special_tokens=False))

    @classmethod
    def from_dir(cls, directory: str | Path) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and chat_template.jinja from a directory.

        Only tokenizer.json must be there.

        Raises:
            ArtifactNotFoundError: there is no tokenizer.json.
            ArtifactCorruptError: a file is not what its name says.
        """
        directory = Path(directory)
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ArtifactNotFoundError(f"there is no tokenizer.json in {directory}")
        text = path.read_text(encoding="utf-8")
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception, and nothing narrower
            raise ArtifactCorruptError(f"{path} is not a tokenizer: {error}") from error
        config: Any = {}
        config_path = directory / "tokenizer_config.json"
        if config_path.exists():
            try:
                config = json.loads(config_path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ArtifactCorruptError(f"{config_path} is not JSON: {error}") from error
            if not isinstance(config, dict):
                raise ArtifactCorruptError(f"{config_path} must hold a JSON object")
        template_path = directory / "chat_template.jinja"
        template = template_path.read_text(encoding="utf-8") if template_path.exists() else None
        return cls(backend, config, chat_template=template)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, framed by BOS and EOS where tokenizer.json says so.

        The config's add_bos_token is not looked at, and neither does transformers look at it
        beside a tokenizer.json.  Other threads run while a long text is tokenized.
        Raises RequestError for text that is not Unicode, such as a lone surrogate.
        """
        try:
            if isinstance(text, str) and len(text) > LONG_TEXT:
                # The library's `encode` holds Python's lock; this one gives the same ids.
                (found,) = self.backend.encode_batch_fast(
                    [text], add_special_tokens=add_special_tokens
                )
            else:
                found = self.backend.encode(text, add_special_tokens=add_special_tokens)
            return list(found.ids)
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError(f"a prompt must be Unicode text: {error}") from error

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; ids the tokenizer does not have yield nothing.

        Other threads run while many are made text of.
        """
        if len(token_ids) > LONG_OUTPUT:
            (text,) = self.backend.decode_batch(
                [token_ids], skip_special_tokens=skip_special_tokens
            )
            return str(text)
        return str(self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def min_tokens(self, text: str) -> int:
        """How many tokens `text` has at least; 0 where its length does not tell."""
        bound = self._bound
        return 0 if bound is None else bound.min_tokens(text)

    @cached_property
    def _bound(self) -> TokenBound | None:
        return token_bound(self.backend)

    def _token_text(self, token_id: int) -> str:
        # Decoders in SentencePiece's manner strip the space of a first token, so that each
        # token is decoded behind another one.
        anchor, anchor_text = self._anchor
        return self.decode([*anchor, token_id], skip_special_tokens=False)[len(anchor_text) :]

    @overload
    def apply_chat_template(
        self, messages: Sequence[Any], *, tokenize: Literal[False] = False, **options: Any
    ) -> str: ...

    @overload
    def apply_chat_template(
        self, messages: Sequence[Any], *, tokenize: Literal[True], **options: Any
    ) -> list[int]: ...

    def apply_chat_template(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        tokenize: bool = False,
        **variables: Any,
    ) -> str | list[int]:
        """The text of a chat prompt; or, with `tokenize`, its token ids.

        Encode the text with add_special_tokens=False: the template has written BOS where
        it wants it.

        Args:
            chat_template: a template, or the name of one of the model's; None takes the one
                called "tool_use" when there are tools, else "default".
            variables: further names the template reads.

        Raises:
            RequestError: no template, or one that fails on these messages.
        """
        template = self._choose_template(chat_template, tools is not None)
        text = render_chat(
            template,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            **{**self.special_tokens, **variables},
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def _choose_template(self, given: str | None, has_tools: bool) -> str:
        if given is not None:
            return self.chat_templates.get(given, given)
        if not self.chat_templates:
            raise RequestError("this model has no chat template: pass chat_template=")
        if has_tools and "tool_use" in self.chat_templates:
            return self.chat_templates["tool_use"]
        if "default" not in self.chat_templates:
            raise UnknownNameError("chat template", "default", self.chat_templates)
        return self.chat_templates["default"]

    def _special_id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        token_id = None if text is None else self.backend.token_to_id(text)
        return None if token_id is None else int(token_id)


def _token_text(value: Any) -> str:
    """Tokens are listed as text, or as a dict with their text and how they match."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ArtifactCorruptError(f"tokenizer_config.json: {value!r} is not a token")
    return text


def _templates(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in value}
    except (TypeError, KeyError) as error:
        raise ArtifactCorruptError(
            "tokenizer_config.json: chat_template must be text or a list of name and template"
        ) from error
