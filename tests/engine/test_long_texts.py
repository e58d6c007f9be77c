"""Long texts: the tokens of short ones, other threads beside them, and the least there can be."""

import json
import random
import threading
import time

import pytest
import tokenizers
from tokenizers import AddedToken, normalizers, pre_tokenizers

from llmir.engine import Tokenizer
from llmir.engine.token_bounds import LETTERS
from llmir.errors import RequestError

from .helpers import TOKENIZER
from .tiny_tokenizers import byte_fallback, byte_level

PIECES = [
    *("the cat", " ", "   ", "\n\t", "naïve", "日本語", "😀", "\x00\x07", "12345", "zq"),
    *("<|im_start|>", "</s>", "<unk>", "é", "\u00ad", "\x80", "\U0010ffff"),
]
KINDS = {"byte-level": byte_level, "sentencepiece": byte_fallback}


def texts(num: int, pieces: int) -> list[str]:
    chooser = random.Random(pieces)
    return ["".join(chooser.choices(PIECES, k=pieces)) for _ in range(num)]


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_have_the_tokens_that_the_library_says(kind):
    backend = KINDS[kind]()
    tokenizer = Tokenizer(backend)
    for text in texts(10, 3000):
        for special in (True, False):
            expected = backend.encode(text, add_special_tokens=special).ids
            assert tokenizer.encode(text, special) == expected
            assert tokenizer.decode(expected, not special) == backend.decode(
                expected, skip_special_tokens=not special
            )
    with pytest.raises(RequestError, match="must be Unicode"):
        tokenizer.encode("a" * 5000 + "\ud800")


def longest_wait(work) -> tuple[float, float]:
    """How long `work` took, and how long another thread waited at most beside it, in seconds."""
    longest, done = 0.0, threading.Event()

    def watch():
        nonlocal longest
        before = time.perf_counter()
        while not done.is_set():
            time.sleep(0.0005)
            now = time.perf_counter()
            longest, before = max(longest, now - before), now

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    done.set()
    watching.join()
    return took, longest


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_other_threads_run_beside_a_long_text(name):
    text = "the cat sat on " * 40_000
    given = {"encode": text, "decode": TOKENIZER.encode(text)}[name]
    tries = []
    for _ in range(5):  # the machine may be busy with something else
        took, longest = longest_wait(lambda: getattr(TOKENIZER, name)(given))
        tries.append(longest / took)
    assert min(tries) < 0.5, "the lock was held for nearly all of it"


def test_no_text_has_fewer_tokens_than_its_length_says():
    backend = byte_level()
    backend.add_tokens([AddedToken("   ", special=False), AddedToken("日本語日本語日本語")])
    tokenizer = Tokenizer(backend)
    longest = max(len(tokenizer.token_text(i).encode()) for i in range(tokenizer.vocab_size))
    assert longest == 27
    assert tokenizer.min_tokens("a" * 2701) == 101
    chooser = random.Random(1)
    for pieces in (1, 3, 20):
        for text in texts(50, pieces):
            assert tokenizer.min_tokens(text) <= len(tokenizer.encode(text, False))
    for word in backend.get_vocab():
        assert tokenizer.min_tokens(word) <= len(tokenizer.encode(word, False))
    words = [*backend.get_vocab()]
    for _ in range(50):
        text = "".join(chooser.choices(words, k=10))
        assert tokenizer.min_tokens(text) <= len(tokenizer.encode(text, False))


def without(*missing: int) -> Tokenizer:
    """A tokenizer that has no tokens for some bytes."""
    own = json.loads(byte_level().to_str())
    letters = {LETTERS[byte] for byte in missing}
    own["model"]["merges"] = [m for m in own["model"]["merges"] if not letters & set("".join(m))]
    vocab = own["model"]["vocab"]
    own["model"]["vocab"] = {word: i for word, i in vocab.items() if not letters & set(word)}
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(own)))


def test_characters_without_a_token_do_not_count():
    tokenizer = without(0x04, 0xF1)
    assert tokenizer.encode("\x04" * 100, False) == []
    assert tokenizer.min_tokens("\x04" * 100) == 0
    assert tokenizer.min_tokens("\x04a" * 100) > 0
    four = "\U00050000" * 100  # F1 90 80 80
    assert (
        len(four) // 12 <= tokenizer.min_tokens(four) <= len(tokenizer.encode(four, False)) == 300
    )
    assert without(0x90).min_tokens(four) == 0


def test_letters_are_those_of_the_library():
    assert set(LETTERS.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for byte in range(0x80):
        ((letter, _),) = split.pre_tokenize_str(chr(byte))
        assert letter == LETTERS[byte]


def test_where_the_length_does_not_tell():
    shrinking = byte_level()
    shrinking.normalizer = normalizers.Strip()
    removing = byte_level()
    removing.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    greedy = byte_level()
    greedy.add_special_tokens([AddedToken("<x>", lstrip=True)])
    for backend in (shrinking, removing, greedy, byte_fallback()):
        assert Tokenizer(backend).min_tokens("a" * 10_000) == 0
