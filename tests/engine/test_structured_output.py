"""Constrained outputs have their form, end where it ends, and depend on nobody else."""

import ast
import re
from collections import Counter

import numpy as np
import pytest

from llmir.engine import SamplingParams, StructuredOutputsParams
from llmir.engine.sampler import SampleState, sample
from llmir.engine.structured_output import Constraint, GrammarCompiler
from llmir.errors import DeviceError

from .fake_runner import FakeRunner, reference_greedy, reference_row, small_limits
from .helpers import TOKENIZER, assert_nothing_held, run
from .structured import EOS, KINDS, PADDING, closers, make_engine, outputs, params
from .test_sampler import assert_distributed, softmax

ODD_CHOICES = ['a"b', "back\\slash", "/re/i", "tab\tnew\nline", "\0\x7f\u2028", "😀 ß", "[x]{2}"]
ARITHMETIC = r"""
start: sum
sum: product (("+" | "-") product)*
product: factor (("*" | "/") factor)*
factor: NUMBER | "(" sum ")"
NUMBER: /[1-9][0-9]?/
"""
ARITHMETIC_GBNF = r"""
root ::= product (("+" | "-") product){0,4}
product ::= factor ("*" factor)?
factor ::= [1-9] | "(" [1-9] "-" [1-9] ")"
"""


def texts(engine, *requests):
    done = outputs(engine, *requests)
    assert all(output.finish_reason == "stop" for output in done), done
    return [output.text for output in done]


# -- the form ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choices", [["yes", "no", "maybe"], ODD_CHOICES, ["a", "ab", "abc"]])
def test_an_output_is_one_of_the_choices(kind, choices):
    engine = make_engine(KINDS[kind])
    found = Counter(
        texts(engine, *[params(choice=choices, seed=seed, temperature=2.0) for seed in range(60)])
    )
    assert set(found) <= set(choices)
    assert len(found) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_each_choice_alone_is_forced(kind):
    for choice in ODD_CHOICES:
        assert texts(make_engine(KINDS[kind]), params(choice=[choice])) == [choice]


def test_many_choices():
    choices = [f"choice {number}" for number in range(5000)]
    found = texts(make_engine(), *[params(choice=choices, seed=seed) for seed in range(10)])
    assert set(found) <= set(choices)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "regex",
    [
        r"[a-c]{2,5}@[a-z]{1,6}\.(com|org)",
        r"^[0-9]{4}-[01]\s$",
        r"(yes|no)(, (yes|no)){0,3}\.",
        r"a/b|c\\d|\[\]",
        r"(?i)ok(ay)?",
        r"[^a-z]{3}",
        r"naïve|größe|日本語|😀+",
        r"x*?y",
    ],
)
def test_an_output_matches_the_regex(kind, regex):
    requests = [params(100, regex=regex, seed=seed) for seed in range(8)]
    for output in outputs(make_engine(KINDS[kind]), *requests):
        assert output.finish_reason == "stop"
        assert re.fullmatch(regex, output.text), output.text


@pytest.mark.parametrize("grammar", [ARITHMETIC, ARITHMETIC_GBNF], ids=["lark", "gbnf"])
def test_an_output_parses_under_the_grammar(grammar):
    # Without a bias to its end a sum of random tokens goes on and on.
    bias = {EOS: 3.0} | closers(TOKENIZER) | {TOKENIZER.backend.token_to_id(")"): 3.0}
    requests = [params(300, grammar=grammar, seed=s, logit_bias=bias) for s in range(20)]
    found = texts(make_engine(), *requests)
    for text in found:
        assert set(text) <= set("0123456789+-*/()")
        tree = ast.parse(text, mode="eval")
        kinds = {type(node) for node in ast.walk(tree)}
        assert kinds <= {ast.Expression, ast.BinOp, ast.Constant, *KNOWN_OPERATORS}
    assert len(set(found)) > 5


KNOWN_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)


# -- where it ends -------------------------------------------------------------------------


def test_a_complete_output_ends_without_an_eos_token():
    (output,) = outputs(make_engine(), params(choice=["the cat"]))
    assert EOS not in output.token_ids
    assert (output.finish_reason, output.stop_reason) == ("stop", None)
    assert TOKENIZER.decode(output.token_ids) == "the cat"


def test_max_tokens_cuts():
    (output,) = outputs(make_engine(), params(5, regex="a{10}|b{10}"))
    assert output.finish_reason == "length"
    assert output.text in ("aaaaa", "bbbbb")


def test_every_eos_token_may_end_what_may_end():
    eos = (1, EOS)
    engine = make_engine(eos=eos)
    done = outputs(engine, *[params(regex="[a-d]*", seed=seed) for seed in range(60)])
    last = Counter(output.token_ids[-1] for output in done)
    assert set(last) == set(eos)
    assert min(last.values()) > 5
    for output in done:
        assert re.fullmatch("[a-d]*", output.text)
        assert output.finish_reason == "stop"
        assert not set(output.token_ids[:-1]) & set(eos)


def test_eos_is_not_allowed_before_the_form_is_complete():
    bias = {EOS: 100.0}
    assert texts(make_engine(), params(regex="[ab]{4}c*", logit_bias=bias, seed=3)) == [
        texts(make_engine(), params(regex="[ab]{4}", seed=3))[0]
    ]


def test_ignore_eos_goes_on_as_long_as_the_form_allows():
    engine = make_engine()
    done = outputs(engine, *[params(regex="[ab]{1,5}", ignore_eos=True, seed=s) for s in range(9)])
    assert all(re.fullmatch("[ab]{5}", output.text) for output in done)
    assert all(output.finish_reason == "stop" for output in done)
    (endless,) = outputs(make_engine(), params(20, regex="[ab]*", ignore_eos=True))
    assert endless.finish_reason == "length"
    assert re.fullmatch("[ab]{20}", endless.text)
    (nothing,) = outputs(make_engine(), params(20, regex="", ignore_eos=True))
    assert (nothing.finish_reason, nothing.token_ids) == ("stop", [])


def test_min_tokens_keeps_an_output_going_where_it_can():
    bias = {EOS: 50.0}
    for min_tokens in (0, 3):
        request = params(regex="[ab]*", logit_bias=bias, min_tokens=min_tokens)
        (output,) = outputs(make_engine(), request)
        assert len(output.token_ids) == min_tokens + 1
    (output,) = outputs(make_engine(), params(choice=["a"], min_tokens=10))
    assert (output.text, output.finish_reason) == ("a", "stop")
    (output,) = outputs(make_engine(), params(regex="a?", min_tokens=10))
    assert (output.text, output.finish_reason) == ("a", "stop")


@pytest.mark.parametrize("eos", [(), (EOS,)])
def test_a_stop_token_may_end_what_may_end(eos):
    stop = 1
    bias = {stop: 100.0, EOS: -100.0}
    request = params(regex="[ab]{3}c*", stop_token_ids=[stop], logit_bias=bias)
    (output,) = outputs(make_engine(eos=eos), request)
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert re.fullmatch("[ab]{3}", output.text)
    early = params(regex="[ab]{3}c*", stop_token_ids=[stop], logit_bias=bias, min_tokens=6)
    (output,) = outputs(make_engine(eos=eos), early)
    assert re.fullmatch("[ab]{3}c{3}", output.text)


def test_stop_strings_end_it_too():
    request = params(regex="(ab){3,9}", stop="ba", include_stop_str_in_output=True)
    (output,) = outputs(make_engine(), request)
    assert (output.text, output.finish_reason, output.stop_reason) == ("aba", "stop", "ba")


def test_a_model_without_eos():
    done = outputs(make_engine(eos=()), *[params(regex="[ab]{1,5}", seed=s) for s in range(9)])
    assert all(re.fullmatch("[ab]{5}", output.text) for output in done)
    (nothing,) = outputs(make_engine(eos=()), params(regex=""))
    assert (nothing.finish_reason, nothing.token_ids, nothing.text) == ("stop", [], "")


# -- the choice among what is allowed ------------------------------------------------------


def allowed_under(regex, tokenizer=TOKENIZER):
    """Tokens whose text matches as a whole, by Python's judgement."""
    text = [tokenizer.token_text(token_id) for token_id in range(tokenizer.vocab_size)]
    return np.array([token_id for token_id, t in enumerate(text) if t and re.fullmatch(regex, t)])


def constrained_state(regex, tokenizer=TOKENIZER, **fields):
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size + PADDING, [EOS])
    one = SamplingParams(structured_outputs=StructuredOutputsParams(regex=regex), **fields)
    return SampleState(
        params=one,
        prompt_token_ids=[],
        output_token_ids=[],
        stop_ids=[EOS],
        rng=np.random.default_rng(77),
        constraint=Constraint(compiler.compile(one.structured_outputs), [], eos_ids=[EOS]),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{}, {"temperature": 0.4}, {"top_k": 3}, {"min_p": 0.3}])
def test_constrained_sampling_is_the_softmax_over_what_is_allowed(kind, fields):
    tokenizer = KINDS[kind]
    logits = reference_row([4, 5, 6], tokenizer.vocab_size + PADDING, [None]) * np.float32(0.7)
    logits[tokenizer.vocab_size :] = 20.0  # rows that no token belongs to
    allowed = allowed_under("[a-e]+x?", tokenizer)
    assert len(allowed) >= 5
    probability = np.zeros(len(logits))
    probability[allowed] = softmax(logits[allowed] / fields.get("temperature", 1.0))
    if "top_k" in fields:
        probability[np.argsort(-probability)[fields["top_k"] :]] = 0
    probability[probability < fields.get("min_p", 0) * probability.max()] = 0
    state = constrained_state("[a-e]+x", tokenizer, **fields)
    drawn = sample(np.broadcast_to(logits, (4000, len(logits))), [state] * 4000)
    assert_distributed(np.bincount(drawn, minlength=len(logits)), probability)


def test_greedy_is_the_best_of_what_is_allowed():
    logits = reference_row([1, 2], TOKENIZER.vocab_size + PADDING, [None])
    allowed = allowed_under("[a-e]+x?")
    state = constrained_state("[a-e]+x", temperature=0)
    before = logits.copy()
    assert sample(logits[None], [state]) == [allowed[logits[allowed].argmax()]]
    np.testing.assert_array_equal(logits, before)


def test_penalties_and_bias_apply_to_what_is_allowed():
    yes, no = (TOKENIZER.backend.token_to_id(letter) for letter in "yn")
    for token_id, text in ((yes, "yes"), (no, "no")):
        request = params(choice=["yes", "no"], logit_bias={token_id: 100.0}, temperature=0)
        assert texts(make_engine(), request) == [text]
    plain, penalised = outputs(
        make_engine(),
        params(regex="[ab]{12}", temperature=0),
        params(regex="[ab]{12}", temperature=0, frequency_penalty=2.0),
    )
    assert re.fullmatch("[ab]{12}", penalised.text)
    counts = Counter(penalised.text)
    assert abs(counts["a"] - counts["b"]) <= 4, plain.text


def test_logprobs_are_those_of_the_unchanged_logits():
    prompt = [7, 3, 11]
    engine = make_engine()
    vocab_size = engine.limits.vocab_size
    (output,) = outputs(engine, params(regex="[ab]{6}", logprobs=2, seed=5))
    tokens = list(prompt)
    for token_id, entries in zip(output.token_ids, output.logprobs, strict=True):
        row = reference_row(tokens, vocab_size, [None])
        shares = np.log(softmax(row))
        assert entries[token_id].logprob == pytest.approx(shares[token_id], abs=1e-5)
        assert set(np.argsort(-row)[:2]) <= set(entries)
        tokens.append(token_id)


def test_when_nothing_allowed_is_possible_the_output_fails_alone():
    logits = np.full((2, TOKENIZER.vocab_size), -np.inf, np.float32)
    logits[:, 5] = 1.0
    state = constrained_state("[a-e]+x")
    other = SampleState(
        params=SamplingParams(),
        prompt_token_ids=[],
        output_token_ids=[],
        stop_ids=[],
        rng=np.random.default_rng(0),
    )
    assert sample(logits, [state, other]) == [None, 5]
    assert "-inf" in state.constraint.failure


# -- in company ----------------------------------------------------------------------------

MIXED = [
    params(regex="[a-f]{30,40}", seed=1),
    params(choice=["yes", "no"], n=3, seed=2),
    params(12, temperature=0),
    params(json={"type": "array", "items": {"type": "boolean"}, "maxItems": 6}, temperature=0),
    params(12, seed=4, top_p=0.9),
    params(grammar=ARITHMETIC_GBNF, seed=5, n=2),
    params(12, seed=6, top_k=5),
    params(20, regex="(?s:.)*", seed=7, presence_penalty=1.0),
]


def one_by_one(requests):
    engine = make_engine()
    answers = []
    for number, request in enumerate(requests):
        engine.add_request("x", [7, 3 + number, 11], request)
        answers += run(engine)["x"].outputs
    return answers


def test_nothing_depends_on_the_company():
    expected = one_by_one(MIXED)
    assert outputs(make_engine(), *MIXED) == expected
    # Six pages are fewer than what these need at a time.
    squeezed = make_engine(num_pages=(15,), max_model_len=56)
    for number, request in enumerate(MIXED):
        squeezed.add_request(str(number), [7, 3 + number, 11], request)
    done = run(squeezed)
    assert sum(output.metrics.num_preemptions for output in done.values()) > 0
    got = [part for number in range(len(MIXED)) for part in done[str(number)].outputs]
    assert got == expected


def test_unconstrained_rows_take_the_same_path():
    runner = FakeRunner(small_limits(vocab_size=TOKENIZER.vocab_size + PADDING), top_k=16)
    engine = make_engine()
    engine.core.runner = runner
    engine.add_request("a", [1, 2], params(6, temperature=0))
    engine.add_request("b", [1, 3], params(choice=["a"]))
    done = run(engine)
    # Only the step with the constrained request had to give rows of logits.
    assert runner.calls[0] == "step"
    assert set(runner.calls[1:]) == {"step_greedy"}
    expected = reference_greedy([1, 2], 6, engine.limits, (EOS,))
    assert done["a"].outputs[0].token_ids == expected


def test_aborts_and_failed_steps():
    expected = one_by_one(MIXED[:2])
    engine = make_engine()
    for number, request in enumerate(MIXED[:2]):
        engine.add_request(str(number), [7, 3 + number, 11], request)
    for _ in range(10):
        engine.add_request("gone", [9], params(regex="[ab]*"))
        engine.step()
        engine.abort("gone")
    assert_nothing_held(finish_with_failures(engine, expected))


def finish_with_failures(engine, expected):
    engine.core.runner.fail_at = len(engine.core.runner.batches)
    with pytest.raises(DeviceError):
        engine.step()
    done = run(engine)
    got = [part for number in range(2) if str(number) in done for part in done[str(number)].outputs]
    assert got == expected[: len(got)]
    assert got
    return engine
