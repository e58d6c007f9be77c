"""Compiling constraints: refusals with reasons, the cache, and limits that hold for each alone."""

import random
import threading
import time

import numpy as np
import pytest

from llmir.engine import StructuredOutputsParams, Tokenizer
from llmir.engine.structured_output import Constraint, GrammarCompiler, compiler, guard
from llmir.engine.structured_output.guard import is_suspicious
from llmir.errors import RequestError

from .helpers import TOKENIZER
from .structured import EOS, make_engine, outputs, params

WRONG = {
    "regex": {
        "(a": "unclosed group",
        "a(?=b)": "look-around",
        r"(a)\1": "backreferences",
        r"\bfoo": "not supported",
    },
    "grammar": {
        "start: other": 'unknown name: "other"',
        "": "GBNF|start",
        "root ::= other": "other",
        'start: <|nope|> "a"': "unknown special token",
        "start: @other": "unknown grammar",
        '{"grammars": [{"json_schema": {}}]}': "expecting rule",
        'start: x\nx[max_tokens=3]: "a"': "the option max_tokens of a rule",
        'start: x\nx[suffix="]", temperature=0.5]: /a/': "the option temperature",
        'start: x\n  x[lazy, stop="b"]: /a/': "the option stop",
        'start: %json {"uniqueItems": true}': "uniqueItems",
        "start: " + "(" * 5000 + '"a"' + ")" * 5000: "deeply nested",
        "root ::= " + "(" * 5000 + '"a"' + ")" * 5000: "recursion",
    },
}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [(name, value, reason) for name, cases in WRONG.items() for value, reason in cases.items()],
    ids=lambda value: value[:30],
)
def test_what_the_library_refuses_is_refused_with_its_reason(name, value, reason):
    engine = make_engine()
    for call in (engine.check_request, lambda *a: engine.add_request("x", *a)):
        with pytest.raises(RequestError, match=f"^structured_outputs.{name}: (.|\n)*({reason})"):
            call([1], params(**{name: value}))
    assert not engine.has_unfinished_requests()
    assert engine.abort("x") is None


def test_rule_options_in_literals_and_comments_are_not_options():
    grammar = 'start: "x" // start[stop="a"]\n  | "[stop=]" | /[stop=]/\n'
    (output,) = outputs(make_engine(), params(grammar=grammar, seed=1))
    assert output.text in {"x", "[stop=]", *"stop="}


def test_a_white_space_pattern_is_checked():
    with pytest.raises(RequestError, match="^structured_outputs.json_object(.|\n)*unclosed"):
        make_engine().check_request([1], params(json_object=True, whitespace_pattern="("))


def test_without_a_tokenizer_it_is_refused():
    with pytest.raises(RequestError, match="^structured_outputs needs a tokenizer"):
        make_engine(None).add_request("x", [1], params(regex="a", detokenize=False))


def test_a_tokenizer_of_an_unknown_kind_is_refused():
    backend = TOKENIZER.backend.from_str(TOKENIZER.backend.to_str())
    backend.decoder = None
    engine = make_engine(Tokenizer(backend))
    with pytest.raises(RequestError, match="^structured_outputs cannot be used with this model"):
        engine.add_request("x", [1], params(regex="a"))


# -- the cache -----------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch):
    """The grammars that the library was made to compile."""
    texts = []
    matcher = compiler.LLMatcher

    def count(vocabulary, text, **options):
        texts.append(text)
        return matcher(vocabulary, text, **options)

    monkeypatch.setattr(compiler, "LLMatcher", count)
    return texts


def make_compiler():
    return GrammarCompiler(TOKENIZER, TOKENIZER.vocab_size, [EOS])


def form(**fields):
    return StructuredOutputsParams(**fields)


def test_a_grammar_is_compiled_once(compiled):
    engine = make_engine()
    outputs(engine, *[params(choice=["a", "b"], n=3), params(choice=["a", "b"])])
    outputs(engine, params(choice=("a", "b"), temperature=0))
    assert len(compiled) == 1
    outputs(engine, params(choice=["b", "a"]))
    assert len(compiled) == 2


def test_those_least_lately_used_are_dropped(compiled, monkeypatch):
    monkeypatch.setattr(compiler, "CACHED_GRAMMARS", 2)
    one = make_compiler()
    for regex in ("a", "b", "a", "c", "a"):
        one.compile(form(regex=regex))
    assert len(compiled) == 3
    one.compile(form(regex="b"))
    assert len(compiled) == 4


def test_any_thread_may_compile():
    one = make_compiler()
    made = {}

    def work(seed):
        chooser = random.Random(seed)
        for _ in range(60):
            letters = chooser.choice("abcdef") * 3
            grammar = one.compile(form(regex=letters))
            constraint = Constraint(grammar, [], eos_ids=[EOS])
            made.setdefault(letters, set()).add(tuple(constraint.allowed(TOKENIZER.vocab_size)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert all(len(ids) == 1 for ids in made.values())


# -- limits --------------------------------------------------------------------------------


def with_states(monkeypatch, number):
    limits = compiler.LLParserLimits(max_lexer_states=number, verbose_errors=False)
    monkeypatch.setattr(compiler, "LIMITS", limits)


MANY_STATES = r"(.*a.{8}b.*|.*c.{6}d.*)x"


def test_full_caches_of_others_are_nothing_to_an_output(monkeypatch, compiled):
    """Outputs of one grammar share their lexer's states, of which there may be so many."""
    requests = [params(60, regex=MANY_STATES, seed=seed) for seed in range(8)]
    expected = outputs(make_engine(), *requests)
    compiled.clear()
    with_states(monkeypatch, 300)
    assert outputs(make_engine(), *requests) == expected
    assert len(compiled) > 1, "the limit was never met"


def test_an_output_that_meets_a_limit_alone_fails_alone(monkeypatch):
    requests = [params(60, regex=MANY_STATES, seed=1), params(choice=["yes", "no"], seed=2)]
    expected = outputs(make_engine(), *requests)
    with_states(monkeypatch, 60)
    failed, fine = outputs(make_engine(), *requests)
    assert fine == expected[1]
    assert failed.finish_reason == "error"
    assert "too many states" in failed.stop_reason
    assert failed.token_ids == expected[0].token_ids[: len(failed.token_ids)]


@pytest.mark.parametrize(
    "fields",
    [
        {"json": {"allOf": [{"type": "string", "pattern": f"a{i}.*b"} for i in range(40)]}},
        {"json": {"type": "integer", "multipleOf": 99999999, "maximum": 10**12}},
        {"grammar": "start: X\nX: " + " & ".join(f"/.*a{i}.*b.*/" for i in range(40))},
    ],
    ids=["patterns", "multiple", "lark"],
)
def test_what_would_take_all_memory_is_refused(monkeypatch, fields):
    monkeypatch.setattr(guard, "MAX_SECONDS", 0.8)
    engine = make_engine()
    began = time.monotonic()
    with pytest.raises(RequestError, match="^structured_outputs.*to compile: use fewer patterns"):
        engine.check_request([1], params(**fields))
    assert time.monotonic() - began < 20


def test_ordinary_schemas_are_compiled_here_alone():
    members = {f"m{i}": {"type": "string", "pattern": "^[a-z]+$"} for i in range(30)}
    assert not is_suspicious(str(form(json={"type": "object", "properties": members}).json))
    assert not is_suspicious('{"$ref": "#/$defs/a", "$defs": {"a": {"format": "date"}}}')


# -- for drafts of tokens ------------------------------------------------------------------


def test_validate_and_rollback():
    grammar = make_compiler().compile(form(regex="[a-e]{3,5}"))
    tokens: list[int] = []
    constraint = Constraint(grammar, tokens, eos_ids=[EOS])
    a, b, x = (TOKENIZER.backend.token_to_id(letter) for letter in "abx")
    vocab_size = TOKENIZER.vocab_size

    def accept(token):
        tokens.append(token)
        constraint.accept(token)

    accept(a)
    first = constraint.allowed(vocab_size)
    assert constraint.validate([b, a, x, a]) == 2
    assert constraint.validate([x]) == 0
    assert constraint.validate([b, b, a, a, a]) == 4
    np.testing.assert_array_equal(constraint.allowed(vocab_size), first)
    for token in (b, b, a, a):
        accept(token)
    assert constraint.complete
    del tokens[1:]
    constraint.rollback(4)
    assert not constraint.complete
    np.testing.assert_array_equal(constraint.allowed(vocab_size), first)
    accept(b)
    assert EOS not in constraint.allowed(vocab_size)
    accept(b)
    assert EOS in constraint.allowed(vocab_size)
