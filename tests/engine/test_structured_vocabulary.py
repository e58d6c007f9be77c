"""The bytes of tokens, for every kind of tokenizer: forced text comes out as it was asked for."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken

from llmir.engine import Tokenizer
from llmir.engine.structured_output.vocabulary import Vocabulary
from llmir.errors import RequestError

from .helpers import TOKENIZER
from .structured import EOS, SENTENCEPIECE, make_engine, outputs, params

TEXTS = ["the cat", " the cat", "cat é日😀", "a\tb\n\0"]


def changed(tokenizer: Tokenizer, **parts: object) -> Tokenizer:
    """The same with other parts of tokenizer.json."""
    own = json.loads(tokenizer.backend.to_str())
    backend = tokenizers.Tokenizer.from_str(json.dumps({**own, **parts}))
    return Tokenizer(backend, {"eos_token": tokenizer.special_tokens["eos_token"]})


def metaspace(scheme: str) -> dict:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


def sequence(*decoders: dict) -> dict:
    return {"type": "Sequence", "decoders": list(decoders)}


def with_added_tokens() -> Tokenizer:
    tokenizer = changed(TOKENIZER)
    tokenizer.backend.add_tokens([AddedToken("   ", special=False), AddedToken("the cat")])
    tokenizer.backend.add_special_tokens(["<tool>"])
    return Tokenizer(tokenizer.backend, {"eos_token": "<|im_end|>"})


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
VARIANTS = {
    "byte-level": TOKENIZER,
    "with a space in front": changed(TOKENIZER, pre_tokenizer={**BYTE_LEVEL, "use_regex": True}),
    "byte-level in a sequence": changed(
        TOKENIZER, decoder=sequence({**BYTE_LEVEL, "use_regex": True})
    ),
    "added tokens": with_added_tokens(),
    "sentencepiece": SENTENCEPIECE,
    "metaspace in front": changed(
        SENTENCEPIECE, normalizer=None, pre_tokenizer=metaspace("always")
    ),
    "decoded by metaspace": changed(
        SENTENCEPIECE,
        normalizer=None,
        pre_tokenizer=metaspace("first"),
        decoder=sequence({"type": "ByteFallback"}, metaspace("first")),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seed", [None, 1])
def test_forced_text_comes_out_as_it_is(name, seed):
    tokenizer = VARIANTS[name]
    # A second choice takes the tokenizer's own encoding out of the play.
    for text in TEXTS:
        choice = [text] if seed is None else [text, text[:-1] + "!", "?"]
        (output,) = outputs(make_engine(tokenizer), params(choice=choice, seed=seed))
        assert output.finish_reason == "stop"
        assert output.text in choice


@pytest.mark.parametrize("name", VARIANTS)
def test_bytes_of_tokens_are_what_they_decode_to(name):
    tokenizer = VARIANTS[name]
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size, [EOS])
    compared = 0
    for token_id in range(tokenizer.vocab_size):
        text = tokenizer.token_text(token_id)
        if not vocabulary.llg.is_special_token(token_id) and "\ufffd" not in text:
            assert vocabulary.llg.decode_bytes([token_id]) == text.encode()
            compared += 1
    assert compared > 100


def test_a_real_vocabulary(demo_artifact: Path):
    tokenizer = Tokenizer.from_dir(demo_artifact)
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size, [EOS])
    text = "Größe: 42 µm, 日本語 😀\n\tdef f(x):\n\t\treturn {'a': [1, 2]}"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert vocabulary.llg.decode_bytes(ids) == text.encode()
    assert vocabulary.llg.tokenize_str(text) == ids


def test_ids_that_nothing_has():
    own = json.loads(TOKENIZER.backend.to_str())["model"]
    last = max(own["vocab"], key=own["vocab"].__getitem__)
    model = {
        **own,
        "vocab": {**own["vocab"], last: own["vocab"][last] + 5},
        "merges": [pair for pair in own["merges"] if "".join(pair) != last],
    }
    tokenizer = changed(TOKENIZER, model=model)
    assert tokenizer.backend.id_to_token(own["vocab"][last]) is None
    (output,) = outputs(make_engine(tokenizer, vocab_size=400), params(regex="[a-z]{3,5}"))
    assert output.finish_reason == "stop"


def test_what_decodes_to_something_else_is_refused():
    shout = {"type": "Replace", "pattern": {"String": "a"}, "content": "AA"}
    own = json.loads(SENTENCEPIECE.backend.to_str())["decoder"]["decoders"]
    engine = make_engine(changed(SENTENCEPIECE, decoder=sequence(*own[:3], shout, *own[3:])))
    with pytest.raises(RequestError, match="^structured_outputs cannot be used .* its token"):
        engine.check_request([1], params(regex="a"))


@pytest.mark.parametrize("eos", [(), (TOKENIZER.vocab_size + 3,)], ids=["none", "unknown"])
@pytest.mark.parametrize("padding", [0, 7])
def test_eos_tokens_that_the_tokenizer_does_not_have(eos, padding):
    size = TOKENIZER.vocab_size + padding
    engine = make_engine(eos=eos, vocab_size=size)
    known = eos if padding else ()
    bias = dict.fromkeys(range(TOKENIZER.vocab_size, size), 100.0)
    for seed in range(4):
        (output,) = outputs(engine, params(regex="[ab]{2,4}", seed=seed, logit_bias=bias))
        assert output.finish_reason == "stop"
        assert len(output.text) == (2 if known else 4)
        assert tuple(output.token_ids[len(output.text) :]) == known
