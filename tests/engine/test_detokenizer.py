"""Incremental text: whole characters only, spaces where they belong, stop strings across tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmir.engine.detokenizer import Detokenizer, IncrementalDecoder, StopChecker
from llmir.engine.tokenizer import Tokenizer

from .tiny_tokenizers import byte_fallback, byte_level

TOKENIZERS = {"byte_level": Tokenizer(byte_level()), "byte_fallback": Tokenizer(byte_fallback())}
TEXTS = [
    "the cat",
    " the  cat ",
    "日本語と😀 emoji",
    "a\n\n b",
    "naïve café",
    "the 👩‍👩‍👧 the",
]


@pytest.fixture(params=sorted(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_to_the_whole(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoder = IncrementalDecoder(tokenizer)
    pieces = [decoder.push(token_id) for token_id in ids]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_behind_a_prompt_the_first_token_keeps_its_space(tokenizer, text):
    prompt = tokenizer.encode("the cat")
    both = prompt + tokenizer.encode(text, add_special_tokens=False)
    decoder = IncrementalDecoder(tokenizer, prompt)
    pieces = [decoder.push(token_id) for token_id in both[len(prompt) :]]
    whole = tokenizer.decode(prompt) + "".join(pieces) + decoder.finish()
    assert whole == tokenizer.decode(both)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.text(max_size=10), st.sampled_from(sorted(TOKENIZERS)))
def test_any_text(text, before, name):
    tokenizer = TOKENIZERS[name]
    prompt = tokenizer.encode(before)
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoder = IncrementalDecoder(tokenizer, prompt)
    pieces = [decoder.push(token_id) for token_id in ids]
    whole = tokenizer.decode(prompt) + "".join(pieces) + decoder.finish()
    assert whole == tokenizer.decode(prompt + ids)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 299), max_size=40), st.sampled_from(sorted(TOKENIZERS)))
def test_any_tokens_give_text_that_only_grows(ids, name):
    tokenizer = TOKENIZERS[name]
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=True)
    seen = ""
    for token_id in ids:
        detokenizer.push(token_id)
        assert detokenizer.text.startswith(seen)
        seen = detokenizer.text
    detokenizer.finish()
    assert detokenizer.text.startswith(seen)
    if name == "byte_level":  # a run of fallback bytes may turn out invalid after it was shown
        assert detokenizer.text == tokenizer.decode(ids)


def test_a_special_token_in_between_does_not_eat_a_space():
    tokenizer = TOKENIZERS["byte_fallback"]
    the = tokenizer.backend.token_to_id("▁the")
    decoder = IncrementalDecoder(tokenizer)
    text = "".join(decoder.push(i) for i in [the, 2, the, 1, 1, the]) + decoder.finish()
    assert text == "the the the"


def test_ids_without_a_token_do_not_eat_a_space():
    tokenizer = TOKENIZERS["byte_fallback"]
    the = tokenizer.backend.token_to_id("▁the")
    decoder = IncrementalDecoder(tokenizer)
    text = "".join(decoder.push(i) for i in [the, 9998, 9999, the]) + decoder.finish()
    assert text == "the the"


def test_special_tokens_are_shown_when_asked_for():
    tokenizer = TOKENIZERS["byte_level"]
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=False)
    ids = tokenizer.encode("a<|im_end|>b")
    assert "".join(map(decoder.push, ids)) == "a<|im_end|>b"


def test_endless_garbage_does_not_make_the_window_grow(tokenizer):
    byte = tokenizer.backend.token_to_id("ÿ")
    if byte is None:
        byte = tokenizer.backend.token_to_id("<0xFF>")
    decoder = IncrementalDecoder(tokenizer)
    shown = 0
    for _ in range(1000):
        shown += len(decoder.push(byte))
        assert len(decoder._ids) - decoder._start <= 66
    assert shown + len(decoder.finish()) == 1000


def test_an_unfinished_character_is_shown_at_the_end():
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer.encode("x𝄞")
    detokenizer = Detokenizer(tokenizer)
    for token_id in ids[:-1]:
        detokenizer.push(token_id)
    assert detokenizer.text == "x"
    detokenizer.finish()
    assert detokenizer.text == "x\ufffd"


def run_checker(pieces, stop, include_stop=False):
    checker = StopChecker(stop, include_stop=include_stop)
    shown = []
    for piece in pieces:
        text, found = checker.push(piece)
        shown.append(text)
        if found is not None:
            return shown, found
    return [*shown, checker.finish()], None


def test_the_start_of_a_stop_string_is_held_back():
    assert run_checker(["a\n", "\nb"], ["\n\n"]) == (["a", ""], "\n\n")
    assert run_checker(["a\n", "b"], ["\n\n"]) == (["a", "\nb", ""], None)
    assert run_checker(["ab", "ab", "abc!"], ["ababc"]) == (["", "", "ab"], "ababc")
    assert run_checker(["EN", "D"], ["END"], include_stop=True) == (["", "END"], "END")
    assert run_checker(["EN"], ["END"]) == (["", "EN"], None)


def test_the_earliest_stop_string_wins_and_then_the_longest():
    assert run_checker(["one two three"], ["three", "two"])[1] == "two"
    assert run_checker(["abcd"], ["ab", "abc"])[1] == "abc"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_pieces_stop_where_the_whole_text_does(pieces, stop):
    shown, found = run_checker(pieces, stop)
    text = "".join(pieces)
    # The first stop string to be complete ends the text, at its earliest place there.
    for end in _ends(pieces):
        places = [(text[:end].find(s), -len(s), s) for s in stop if s in text[:end]]
        if places:
            at, _, expected = min(places)
            assert ("".join(shown), found) == (text[:at], expected)
            return
    assert ("".join(shown), found) == (text, None)


def _ends(pieces):
    end = 0
    for piece in pieces:
        end += len(piece)
        yield end


def test_stop_strings_are_not_looked_for_before_min_tokens():
    tokenizer = TOKENIZERS["byte_level"]
    detokenizer = Detokenizer(tokenizer, stop=["a"])
    (a,) = tokenizer.encode("a")
    assert detokenizer.push(a, check_stop=False) is None
    assert detokenizer.push(a) == "a"
    assert detokenizer.text == "a"
