"""What `LLM` and `AsyncLLM` share: the tokenizer, the chat template, the defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmir.engine.generation_config import GenerationConfig
from llmir.engine.prompts import TokensPrompt
from llmir.engine.sampling_params import SamplingParams
from llmir.engine.tokenizer import Tokenizer
from llmir.errors import RequestError

Messages = Sequence[Mapping[str, Any]]


class Frontend:
    """Turns what callers write into what the engine serves."""

    def __init__(
        self, tokenizer: Tokenizer | None, generation_config: GenerationConfig | None
    ) -> None:
        self.tokenizer = tokenizer
        self.generation_config = generation_config or GenerationConfig()

    def eos_token_ids(self) -> list[int]:
        """Ids that end an answer: the model's, and the tokenizer's."""
        eos = set(self.generation_config.eos_token_ids)
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            eos.add(self.tokenizer.eos_token_id)
        return sorted(eos)

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer that prompts pass through.  Raises RequestError where there is none."""
        if self.tokenizer is None:
            raise RequestError("this model has no tokenizer")
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What is used where no SamplingParams are given: the model's generation_config."""
        return self.generation_config.default_params()

    def render_chat(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> TokensPrompt:
        """The prompt of a conversation.

        Raises RequestError as `chat_text`, whose arguments these are.
        """
        text = self.chat_text(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
        )
        return self.chat_prompt(text)

    def chat_text(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """What a chat template makes of a conversation.

        Args:
            messages: dicts with `role` and `content`.
            tools: JSON schemas of functions, for the template to show.
            chat_template: a template to use instead of the model's, or the name of one of its.
            chat_template_kwargs: further names the template reads.

        Raises RequestError: there is no template, or it refuses these messages.
        """
        return self.get_tokenizer().apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            chat_template=chat_template,
            **(chat_template_kwargs or {}),
        )

    def chat_prompt(self, text: str) -> TokensPrompt:
        """The prompt of what a chat template has written, BOS included where it wants it."""
        token_ids = self.get_tokenizer().encode(text, add_special_tokens=False)
        return {"prompt_token_ids": token_ids, "prompt": text}
