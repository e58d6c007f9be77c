"""How near llmir comes to transformers on the demo model: the measurements themselves.

tests/parity/test_demo_model.py asserts on them; benchmarks/accuracy.py files them.

Shape legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers

import llmir

from . import reference

NUM_POSITIONS = 48
NEAR_TIE = 1e-2  # where the reference's two best logits are nearer, either token is right

# Public English text that every Debian machine has.
TEXT = Path("/usr/share/common-licenses/GPL-3")
WINDOW, NUM_WINDOWS = 1024, 4

QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain gravity to a child of six.",
    "List three prime numbers greater than 50.",
    "Translate 'good morning' into Spanish.",
    "Who wrote 'Pride and Prejudice'?",
)
TEXTS = (
    "The quick brown fox",
    "Once upon a time, in a village by the river,",
    "def fibonacci(n):\n    ",
    "In 1969, the first human beings",
    "1, 2, 3, 5, 8, 13,",
    "Water boils at",
    "Dear Sir or Madam,\n\nI am writing to",
    "SELECT name, age FROM users WHERE",
    "La vie est belle parce que",
    "Photosynthesis is the process by which",
    "The recipe needs 200 g of flour, two eggs and",
    "#include <stdio.h>\n\nint main(void) {",
    "Das Wetter in Berlin ist heute",
    "Roses are red, violets are",
)
assert len(QUESTIONS) + len(TEXTS) == 20


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt with the tokens that llmir chose greedily, and the reference's view of them.

    expected: the reference's teacher-forced logits of the answer, float32 [NUM_POSITIONS, V]
    """

    token_ids: list[int]
    expected: reference.F32

    @property
    def chosen(self) -> list[int]:
        return self.token_ids[-NUM_POSITIONS:]

    def rows_of(self, llm: llmir.LLM) -> reference.F32:
        """The same logits from llmir."""
        return llm.logits(self.token_ids)[-NUM_POSITIONS - 1 : -1]

    def wrong_choices(self) -> list[int]:
        """Positions where llmir's greedy token is not the reference's, up to a near tie.

        Until then the tokens before are the reference's own greedy ones, so teacher-forcing
        it on llmir's answer asks what it would choose itself.
        """
        wrong = []
        for position, (row_V, token) in enumerate(zip(self.expected, self.chosen, strict=True)):
            second, best = np.partition(row_V, -2)[-2:]
            if best - second < NEAR_TIE:
                break
            if row_V.argmax() != token:
                wrong.append(position)
        return wrong


def answers(llm: llmir.LLM, model: Any) -> list[Answer]:
    """What llmir answers to the 20 prompts, NUM_POSITIONS tokens each."""
    prompts = [llm.render_chat([{"role": "user", "content": q}]) for q in QUESTIONS] + list(TEXTS)
    params = llmir.SamplingParams(temperature=0, max_tokens=NUM_POSITIONS, ignore_eos=True)
    found = []
    for output in llm.generate(prompts, params):
        token_ids = [*output.prompt_token_ids, *output.outputs[0].token_ids]
        rows = reference.logits(model, token_ids)[-NUM_POSITIONS - 1 : -1]
        found.append(Answer(token_ids, rows))
    return found


def agreement(rows: Sequence[reference.F32], given: Sequence[Answer]) -> float:
    """Share of positions where the likeliest token in `rows` is the reference's."""
    same = [r.argmax(1) == a.expected.argmax(1) for r, a in zip(rows, given, strict=True)]
    return float(np.mean(same))


def windows(path: Path) -> list[list[int]]:
    """The first tokens of the text, in windows."""
    token_ids = text_tokens(path)
    return [token_ids[i * WINDOW : (i + 1) * WINDOW] for i in range(NUM_WINDOWS)]


def text_tokens(path: Path) -> list[int]:
    """The tokens of the text, by transformers' tokenizer of the GGUF file.

    That one takes the file's pre-tokenizer for GPT-2's and splits a few line breaks before
    digits otherwise than the model's own.  Both models are given the same tokens, and these
    make the reference's figure what anybody measures with transformers alone: 21.24.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return list(tokenizer(TEXT.read_text(encoding="utf-8"))["input_ids"])


def reference_scores(model: Any, token_ids: Sequence[int]) -> np.ndarray:
    """Log-probability of each token but the first, float64."""
    rows_TV = reference.logits(model, token_ids)[:-1]
    scores = []
    # A row at a time: all of them in float64 are 400 MB, several times over.
    for row_V, token in zip(rows_TV, token_ids[1:], strict=True):
        wide_V = row_V.astype(np.float64)
        largest = wide_V.max()
        scores.append(wide_V[token] - largest - np.log(np.exp(wide_V - largest).sum()))
    return np.array(scores)


def perplexity(scores: Sequence[np.ndarray]) -> float:
    return float(np.exp(-np.concatenate(list(scores)).mean()))
