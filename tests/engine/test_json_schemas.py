"""Outputs under JSON schemas validate, by another library's judgement; what cannot be is refused."""

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from llmir.engine import Tokenizer
from llmir.errors import RequestError

from .json_schemas import INVALID, SCHEMAS, UNSUPPORTED
from .structured import KINDS, closers, make_engine, outputs, params


def check(name, output):
    assert output.finish_reason == "stop", (name, output)
    schema = SCHEMAS[name]
    validator = validator_for(schema, Draft202012Validator)
    validator.check_schema(schema)
    checker = validator.FORMAT_CHECKER
    validator(schema, format_checker=checker).validate(json.loads(output.text))


@pytest.mark.parametrize("kind", KINDS)
def test_every_output_validates(kind):
    tokenizer = KINDS[kind]
    bias = closers(tokenizer)
    requests = [
        params(800, json=schema, logit_bias=bias, seed=number)
        for number, schema in enumerate(SCHEMAS.values())
    ]
    done = outputs(make_engine(tokenizer), *requests)
    for name, output in zip(SCHEMAS, done, strict=True):
        check(name, output)


def test_every_output_validates_with_a_real_vocabulary(demo_artifact: Path):
    tokenizer = Tokenizer.from_dir(demo_artifact)
    engine = make_engine(tokenizer, vocab_size=tokenizer.vocab_size + 64, max_num_seqs=32)
    bias = closers(tokenizer, 9.0)
    names = [*list(SCHEMAS)[::3], "formats", "extraction", "tree", "tool call"]
    requests = [
        params(400, json=SCHEMAS[name], logit_bias=bias, seed=number, whitespace_pattern=" ")
        for number, name in enumerate(names)
    ]
    for name, output in zip(names, outputs(engine, *requests), strict=True):
        check(name, output)


def test_there_are_enough_of_them():
    assert len(SCHEMAS) >= 45
    assert len({json.dumps(schema) for schema in SCHEMAS.values()}) == len(SCHEMAS)


def test_any_object():
    bias = closers(KINDS["byte-level"])
    done = outputs(
        make_engine(), *[params(json_object=True, seed=s, logit_bias=bias) for s in range(8)]
    )
    assert all(output.finish_reason == "stop" for output in done)
    assert all(isinstance(json.loads(output.text), dict) for output in done)
    assert len({output.text for output in done}) > 1


DIGITS = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 9},
    "minItems": 2,
    "maxItems": 3,
}


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({}, r"\[\s*\d\s*,\s*\d\s*(,\s*\d\s*)?\]"),
        ({"disable_any_whitespace": True}, r"\[\d,\d(,\d)?\]"),
        ({"whitespace_pattern": " {1,2}"}, r"\[ {0,2}\d {0,2}, {0,2}\d {0,2}(, {0,2}\d {0,2})?\]"),
    ],
)
def test_white_space(options, pattern):
    done = outputs(
        make_engine(), *[params(json=DIGITS, seed=seed, **options) for seed in range(20)]
    )
    assert all(re.fullmatch(pattern, output.text) for output in done)
    assert any(re.search(r"\s", output.text) for output in done) == (
        "disable_any_whitespace" not in options
    )
    assert all(len(json.loads(output.text)) in (2, 3) for output in done)


def test_members_come_in_the_order_of_the_schema():
    names = ["zeta", "alpha", "mid"]
    schema = {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in names},
        "required": sorted(names),
    }
    (output,) = outputs(make_engine(), params(json={**schema, "additionalProperties": False}))
    assert list(json.loads(output.text)) == names


@pytest.mark.parametrize(
    ("schema", "reason"),
    [*UNSUPPORTED.values(), *INVALID.values()],
    ids=[*UNSUPPORTED, *(f"wrong {name}" for name in INVALID)],
)
def test_what_cannot_be_kept_to_is_refused_with_the_reason(schema, reason):
    engine = make_engine()
    with pytest.raises(RequestError, match=f"^structured_outputs.json: (.|\n)*({reason})"):
        engine.add_request("x", [1], params(json=schema))
    assert not engine.has_unfinished_requests()
