"""Which precision the activations of each matmul get: the option `activations`, resolved.

auto                     what costs little accuracy where it is fast, see AUTO
int8 | int8_16 | bf16 | int12 | int16 | f32    that precision for every matmul
qkv=int16,down=int8      per role; the others as in auto

What is asked for by name is what a matmul gets, or it is refused: integers are for quantised
weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmir.dialect_ext.activations import PRECISIONS
from llmir.errors import OptionError

ROLES = ("qkv", "o", "gate_up", "down", "lm_head")

AUTO = {
    "qkv": "int12+",
    "o": "int8+",
    "gate_up": "int8+",
    "down": "int12+",
    "lm_head": "int12+",
}
"""The least precision of each role.

Mean KL divergence with 8 bits in one role alone (SmolLM2-135M, 2,048 tokens, against float32):
qkv 1.1e-3, lm_head 9e-4, gate_up 8e-4, down 5e-4, o 7e-5.  The first two get more bits, and
down: its input has outliers, and with 8 bits the demo model's answers change.
"""

AUTO_OF_FOUR_BITS = {**AUTO, **dict.fromkeys(("qkv", "gate_up", "down"), "int8_16+")}
"""The same of weights of four bits, for which there is int8_16.

Mean KL divergence of all roles together, as above: AUTO 9.3e-4, these 8.7e-4, int8 in the place
of both 2.6e-3.  In groups of four tokens 11 % of the blocks of qkv have an outlier, 8 % of
gate_up's and 12 % of down's: a tenth more products than 8 bits take, where 12 take twice as many.
"""

_FLOATS = ("f32", "f16", "bf16")

_PROJECTIONS = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "o_proj": "o",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "down_proj": "down",
    "lm_head": "lm_head",
}


def role_of(name: str, tied_embedding: bool) -> str:
    """The role of the matrix of that canonical name.  An embedding's is that of the head."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    assert tied_embedding or module in _PROJECTIONS or module == "embed_tokens", name
    return _PROJECTIONS.get(module, "lm_head")


def precision_of(role: str, asked: str, format_name: str, bits: int | None = None) -> str:
    """What a matrix of that role and format gets, where `asked` was asked for its role.

    bits: of an integer of a quantised weight.  AUTO's are for quantised weights.  A bf16 weight
    comes from a model whose own arithmetic is bf16: activations in bf16, or better, are enough
    whatever its role.  Weights of more bits than that get float32.

    Raises OptionError where integers are asked for by name and the weight is not quantised.
    """
    precision = asked
    if asked == "auto":
        precision = (AUTO_OF_FOUR_BITS if bits == 4 else AUTO)[role]
    if format_name not in _FLOATS:
        return precision
    if precision.endswith("+"):
        return "bf16+" if format_name == "bf16" else "f32"
    if precision not in ("bf16", "f32"):
        raise OptionError(
            f"activations {precision} are for quantised weights, and some here are {format_name}: "
            "ask for bf16 or f32 in their roles, or round the weights as well (weights=q8_0)"
        )
    return precision


def parse_activations(given: str | Mapping[str, str]) -> dict[str, str]:
    """Role → precision or "auto", of the option as it was given.  Raises OptionError."""
    all_auto = dict.fromkeys(ROLES, "auto")
    if isinstance(given, Mapping):
        return all_auto | _checked(dict(given))
    if given == "auto":
        return all_auto
    if "=" not in given:
        return _checked(dict.fromkeys(ROLES, given))
    pairs = (item.partition("=")[::2] for item in given.split(","))
    return all_auto | _checked({role.strip(): precision.strip() for role, precision in pairs})


def _checked(roles: dict[str, str]) -> dict[str, str]:
    for role, precision in roles.items():
        if role not in ROLES:
            raise OptionError(f"activations: no role {role!r}; the roles are {', '.join(ROLES)}")
        if precision not in PRECISIONS:
            raise OptionError(
                f"activations must be auto, {', '.join(PRECISIONS)}, or role=precision,…; "
                f"got {precision!r}"
            )
    return roles
