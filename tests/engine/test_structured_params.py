"""StructuredOutputsParams: exactly one constraint, of the right kind, refused by name."""

import copy
import dataclasses
import pickle

import pytest

from llmir.engine import SamplingParams, StructuredOutputsParams
from llmir.engine.structured_output.params import NOT_IMPLEMENTED
from llmir.errors import OptionError, RequestError, UnknownNameError

CYCLE: dict = {}
CYCLE["self"] = CYCLE
DEEP: dict = {}
for _ in range(100_000):
    DEEP = {"not": DEEP}


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({}, "it has none"),
        ({"json_object": False}, "it has none"),
        ({"regex": "a", "choice": ["a"]}, "it has regex and choice"),
        ({"json": "{}", "json_object": True}, "it has json and json_object"),
    ],
)
def test_exactly_one_constraint(fields, what):
    with pytest.raises(RequestError, match=f"^structured_outputs needs one of json, .*; {what}"):
        StructuredOutputsParams(**fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("json", 5),
        ("json", "{"),
        ("json", "true"),
        ("json", "[]"),
        ("json", {"minimum": float("nan")}),
        ("json", {"default": {1, 2}}),
        ("json", CYCLE),
        ("json", DEEP),
        ("json", '{"a":' * 100_000),
        ("regex", 5),
        ("regex", "\ud800"),
        ("grammar", ["start"]),
        ("choice", "yes"),
        ("choice", []),
        ("choice", ["yes", 1]),
        ("choice", ["\udfff"]),
        ("json_object", "yes"),
    ],
)
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(RequestError, match=f"^structured_outputs.{name} "):
        StructuredOutputsParams(**{name: value})


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"regex": "a", "disable_any_whitespace": True}, "disable_any_whitespace is for json"),
        ({"choice": ["a"], "whitespace_pattern": " "}, "whitespace_pattern is for json"),
        ({"json": {}, "disable_any_whitespace": 1}, "disable_any_whitespace must be True"),
        ({"json": {}, "whitespace_pattern": 1}, "whitespace_pattern must be a string"),
        (
            {"json": {}, "whitespace_pattern": " ", "disable_any_whitespace": True},
            "whitespace_pattern contradicts disable_any_whitespace",
        ),
    ],
)
def test_options_that_could_not_take_effect_are_refused(fields, name):
    with pytest.raises(RequestError, match=f"^structured_outputs.{name}"):
        StructuredOutputsParams(**fields)


@pytest.mark.parametrize("name", sorted(NOT_IMPLEMENTED))
def test_what_is_not_implemented_is_refused_by_name(name):
    with pytest.raises(OptionError, match=f"structured_outputs.{name} is not implemented"):
        StructuredOutputsParams(regex="a", **{name: None})


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"structured_outputs 'reg'.*regex"):
        StructuredOutputsParams(reg="a")


def test_sampling_params_take_nothing_else():
    with pytest.raises(RequestError, match="^structured_outputs must be StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})


def test_a_schema_is_kept_as_it_was_given():
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    form = StructuredOutputsParams(json=schema)
    schema["properties"].clear()
    assert form == StructuredOutputsParams(
        json='{"type": "object",\n"properties": {"b": {}, "a": {}}}'
    )
    assert form != StructuredOutputsParams(json=schema)


def test_copies():
    form = StructuredOutputsParams(choice=["a", "b"])
    params = SamplingParams(structured_outputs=form)
    assert form.choice == ("a", "b")
    assert copy.deepcopy(params) == params
    assert pickle.loads(pickle.dumps(params)) == params
    assert dataclasses.replace(form, choice=["c"]).choice == ("c",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        form.regex = "a"
