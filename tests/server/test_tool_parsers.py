"""Calls in outputs: every format, however the output is cut into pieces."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmir.errors import OptionError
from llmir.server.settings import ServerSettings
from llmir.server.tools.events import Arguments, CallBegins, Text
from llmir.server.tools.formats import BARE, FORMATS, format_of
from llmir.server.tools.parser import FormatParser

NAMES = {"get_weather", "add"}
PARIS = {"city": 'Paris }]" </tool_call> \\', "deep": {"a": [1, {"b": None}]}}


def parse(format, pieces):
    """(text, [(name, arguments)]) of an output that comes in pieces."""
    parser = FormatParser(format, NAMES)
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    text, calls = "", []
    for event in events:
        match event:
            case Text(new):
                text += new
            case CallBegins(name):
                calls.append((name, ""))
            case Arguments(new):
                calls[-1] = (calls[-1][0], calls[-1][1] + new)
    return text, calls


def cut(text, seed):
    """The text in pieces of one to six characters."""
    random_ = random.Random(seed)
    pieces = []
    while text:
        size = random_.randint(1, 6)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def call(name, arguments, key="arguments"):
    return json.dumps({"name": name, key: arguments})


WEATHER, ADD = call("get_weather", PARIS), call("add", {"a": 1, "b": 2})
TWO = [("get_weather", PARIS), ("add", {"a": 1, "b": 2})]
OUTPUTS = [
    ("hermes", f"<tool_call>\n{WEATHER}\n</tool_call>", "", TWO[:1]),
    (
        "hermes",
        f"I look.\n<tool_call>{WEATHER}</tool_call>\n<tool_call>\n{ADD}</tool_call>\n",
        "I look.",
        TWO,
    ),
    ("hermes", f"<tool_call>{WEATHER}", "", TWO[:1]),
    ("hermes", f"a <tool_call>{ADD}</tool_call> b", "a b", TWO[1:]),
    ("smollm2", f"<tool_call>[\n{WEATHER},\n{ADD}\n]</tool_call>", "", TWO),
    ("smollm2", "<tool_call>[]</tool_call>", "", []),
    ("llama3_json", call("add", {"a": 1, "b": 2}, "parameters"), "", TWO[1:]),
    ("llama3_json", f" {WEATHER}; {ADD}", "", TWO),
    ("llama3_json", f"<|python_tag|>{ADD}", "", TWO[1:]),
    ("llama3_json", f"No: {ADD}", f"No: {ADD}", []),
    ("mistral", f"[TOOL_CALLS][{WEATHER}, {ADD}]", "", TWO),
    ("mistral", f"[TOOL_CALLS] [{ADD}]", "", TWO[1:]),
    ("mistral", f"[TOOL_CALLS]get_weather{json.dumps(PARIS)}", "", TWO[:1]),
    (
        "mistral",
        f'[TOOL_CALLS]get_weather[ARGS]{json.dumps(PARIS)}[TOOL_CALLS]add{{"a": 1, "b": 2}}',
        "",
        TWO,
    ),
    # In another order, with more beside it, or with the arguments as text.
    (
        "hermes",
        '<tool_call>{"arguments": {"a": 1, "b": 2}, "name": "add"}</tool_call>',
        "",
        TWO[1:],
    ),
    (
        "hermes",
        '<tool_call>{"id": 7, "name": "add", "arguments": {"a":1,"b":2}, "x": [true]}</tool_call>',
        "",
        TWO[1:],
    ),
    (
        "hermes",
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}</tool_call>',
        "",
        TWO[1:],
    ),
    ("hermes", '<tool_call>{"name": "add"}</tool_call>', "", [("add", {})]),
    ("hermes", '<tool_call>{"name": "add", "arguments": null}</tool_call>', "", [("add", {})]),
]
NO_CALLS = [
    ("hermes", "1 < 2 and <tool> is </tool_call>, so <tool_cal"),
    ("hermes", '<tool_call>{"name": "rob", "arguments": {}}</tool_call>'),
    ("hermes", "<tool_call>add(1, 2)</tool_call>"),
    ("hermes", '<tool_call>{"name": "add", }</tool_call>'),
    ("hermes", '<tool_call>{"nam'),
    ("hermes", '<tool_call>{"name": "add", "arguments": 5}</tool_call>'),
    ("hermes", "trailing space \n"),
    ("llama3_json", '{"city": "Paris"}'),
    ("llama3_json", "[1, 2, 3] are numbers"),
    ("llama3_json", "<|python_tag|>brave_search.call(query='x')"),
    ("mistral", "[TOOL_CALLS]rob{}"),
    ("mistral", "[TOOL_CALL"),
]


@pytest.mark.parametrize(("name", "output", "text", "calls"), OUTPUTS)
def test_calls_are_found_however_they_come(name, output, text, calls):
    for seed in range(20):
        got_text, got = parse(FORMATS[name], [output] if seed == 0 else cut(output, seed))
        assert [(name, json.loads(arguments)) for name, arguments in got] == calls
        # What stands between calls is white space that belongs to nothing.
        assert " ".join(got_text.split()) == " ".join(text.split())


@pytest.mark.parametrize(("name", "output"), NO_CALLS)
def test_what_is_no_call_is_text_to_the_letter(name, output):
    for seed in range(20):
        assert parse(FORMATS[name], [output] if seed == 0 else cut(output, seed)) == (output, [])


def test_arguments_come_as_they_grow():
    parser = FormatParser(FORMATS["hermes"], NAMES)
    assert parser.feed('Well, <tool_call>{"name": "add"') == [Text("Well,")]
    begins, *pieces = parser.feed(', "arguments": {"a": 1')
    assert begins == CallBegins("add")
    assert "".join(e.text for e in pieces) == '{"a": 1'
    assert "".join(e.text for e in parser.feed(', "b"')) == ', "b"'


def test_a_call_that_is_cut_short_stays_one():
    assert parse(FORMATS["hermes"], ['<tool_call>{"name": "add", "arguments": {"a": 1']) == (
        "",
        [("add", '{"a": 1')],
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(
        st.tuples(st.sampled_from(sorted(NAMES)), st.dictionaries(st.text(), JSON, max_size=3)),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 2**32),
    ascii_=st.booleans(),
)
def test_any_arguments_come_through(calls, seed, ascii_):
    written = [
        json.dumps({"name": name, "arguments": given}, ensure_ascii=ascii_) for name, given in calls
    ]
    several = f"[{', '.join(written)}]"
    outputs = {
        "hermes": "".join(f"<tool_call>\n{one}\n</tool_call>\n" for one in written),
        "smollm2": f"<tool_call>{several}</tool_call>",
        "llama3_json": "; ".join(written),
        "mistral": f"[TOOL_CALLS]{several}",
    }
    for name, output in outputs.items():
        text, got = parse(FORMATS[name], cut(output, seed))
        assert [(name, json.loads(arguments)) for name, arguments in got] == calls
        assert not text.strip()
    assert parse(BARE, cut(several, seed))[1] == got


@settings(max_examples=60, deadline=None)
@given(text=st.text("<tol_ca>[TOL_CAS]{}\"name:' \n", max_size=60), seed=st.integers(0, 99))
def test_any_text_comes_to_an_end(text, seed):
    for format in FORMATS.values():
        whole = parse(format, [text])
        assert parse(format, cut(text, seed)) == whole


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "smollm2"),
        ("{% if tools %}<tool_call>{% endif %}", "hermes"),
        ("{% if tools %}<|python_tag|>{% endif %}", "llama3_json"),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", "mistral"),
        ("{% if tools %}<tool_call><function=f>{% endif %}", None),
        ("{% if tools %}something else{% endif %}", None),
    ],
)
def test_a_format_is_known_by_the_template(template, name):
    format = format_of(template)
    assert (format and format.name) == name


def test_a_parser_that_is_not_there_is_named():
    with pytest.raises(OptionError, match="hermes, llama3_json, mistral, smollm2"):
        ServerSettings(model_names=("a",), tool_call_parser="pythonic")
