"""The option `activations`: what it resolves to, and what is no value of it."""

from __future__ import annotations

import re

import pytest

from llmir.compiler.activations import (
    AUTO,
    AUTO_OF_FOUR_BITS,
    ROLES,
    parse_activations,
    precision_of,
    role_of,
)
from llmir.dialect_ext.activations import PRECISIONS, allowed, is_known
from llmir.errors import OptionError

ALL_AUTO = dict.fromkeys(ROLES, "auto")


def test_auto_gives_every_role_a_least_precision() -> None:
    assert parse_activations("auto") == ALL_AUTO
    for auto in (AUTO, AUTO_OF_FOUR_BITS):
        assert set(auto) == set(ROLES)
        assert all(is_known(precision) for precision in auto.values())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_precision_for_all(precision: str) -> None:
    assert parse_activations(precision) == dict.fromkeys(ROLES, precision)


def test_roles_that_are_not_named_are_as_in_auto() -> None:
    expected = {**ALL_AUTO, "qkv": "f32", "down": "int8"}
    assert parse_activations("qkv=f32, down = int8") == expected
    assert parse_activations({"qkv": "f32", "down": "int8"}) == expected
    assert parse_activations({}) == ALL_AUTO


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "int4",
            "activations must be auto, int8, int8_16, bf16, int12, int16, f32, or role=precision,…; got 'int4'",
        ),
        ("", "got ''"),
        ("int8+", "got 'int8+'"),
        ("qkv=auto", "got 'auto'"),
        ("qkv=int8,", "no role ''; the roles are qkv, o, gate_up, down, lm_head"),
        ("gate=int8", "no role 'gate'"),
        ({"qkv": "int4"}, "got 'int4'"),
    ],
)
def test_what_is_refused(given: str | dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        parse_activations(given)


@pytest.mark.parametrize(
    ("name", "tied", "role"),
    [
        ("model.layers.3.self_attn.k_proj.weight", False, "qkv"),
        ("model.layers.3.self_attn.o_proj.weight", False, "o"),
        ("model.layers.3.mlp.up_proj.weight", False, "gate_up"),
        ("model.layers.3.mlp.down_proj.weight", False, "down"),
        ("lm_head.weight", False, "lm_head"),
        ("model.embed_tokens.weight", True, "lm_head"),
    ],
)
def test_roles(name: str, tied: bool, role: str) -> None:
    assert role_of(name, tied) == role


def test_what_a_precision_means_for_a_format() -> None:
    assert precision_of("qkv", "auto", "q4_1", bits=4) == "int8_16+"
    assert precision_of("qkv", "auto", "q8_0", bits=8) == "int12+"
    assert precision_of("gate_up", "auto", "q8_0", bits=8) == "int8+"
    assert precision_of("o", "auto", "q4_1", bits=4) == "int8+"
    assert precision_of("qkv", "int8", "int4-g32", bits=4) == "int8"
    assert precision_of("qkv", "auto", "bf16") == "bf16+"
    assert precision_of("gate_up", "auto", "f16") == "f32"
    assert precision_of("down", "f32", "bf16") == "f32"
    assert precision_of("down", "bf16", "f16") == "bf16"


@pytest.mark.parametrize("precision", ["int8", "int8_16", "int12", "int16"])
@pytest.mark.parametrize("weight", ["bf16", "f16", "f32"])
def test_integers_are_not_for_float_weights(precision: str, weight: str) -> None:
    with pytest.raises(
        OptionError,
        match=f"activations {precision} are for quantised weights, and "
        f"some here are {weight}: ask for bf16 or f32",
    ):
        precision_of("qkv", precision, weight)


def test_a_plus_allows_every_better_one() -> None:
    assert allowed("int16") == ("int16",)
    assert allowed("int16+") == ("int16", "f32")
    assert allowed("int8+") == PRECISIONS
    assert not is_known("int4+")
