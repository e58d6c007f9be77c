"""Chat templates: what transformers renders, and errors that are ours."""

import types

import pytest
from transformers import PreTrainedTokenizerFast

from llmir.engine.chat_template import render_chat
from llmir.errors import RequestError

from .tiny_tokenizers import CHATML, byte_level

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant' }}{% endif %}"
)

TOOLS = """
{%- if tools %}
    {{- '<tools>' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=2) }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '</tools>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if message.tool_calls %}
        {{- message.tool_calls[0].function | tojson }}
    {%- elif message.content is defined %}
        {{- message.role ~ ': ' ~ message.content }}
    {%- endif %}
    {%- if loop.index > 20 %}{% break %}{% endif %}
{% endfor %}
  {% if enable_thinking is defined and enable_thinking is false %}
<think></think>
  {% endif %}
"""

GENERATION = (
    "{% set ns = namespace(count=0) %}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{% set ns.count = ns.count + 1 %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}[{{ m['content'] }}{{ m.get('reasoning_content', '') }}]{% endif %}{% endfor %}"
    "{{ ns.count }}{{ dict(a=1)['a'] }}"
)

STRICT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "[INST] {{ message['content'] | replace('&', 'and') | upper }} [/INST]{% endfor %}"
)

MULTIPART = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}|{% endfor %}{% endif %}{% endfor %}"
)

USER = {"role": "user", "content": "1 < 2 & 'x' → ü"}
CHATS = [
    [USER],
    [{"role": "system", "content": "  Be brief.  "}, USER],
    [USER, {"role": "assistant", "content": "yes\n"}, {"role": "user", "content": "why?"}],
    [USER, {"role": "assistant", "content": "", "reasoning": "hm"}, USER],
]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": "é<"}}}],
}
SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": "<é>"}}}


@pytest.fixture(scope="module")
def theirs():
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )


def both(theirs, template, messages, **options):
    expected = theirs.apply_chat_template(
        messages, chat_template=template, tokenize=False, **options
    )
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    return render_chat(template, messages, **{**tokens, **options}), expected


@pytest.mark.parametrize("template", [CHATML, LLAMA3, TOOLS, GENERATION])
@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_like_transformers(theirs, template, messages, add_generation_prompt):
    ours, expected = both(theirs, template, messages, add_generation_prompt=add_generation_prompt)
    assert ours == expected


def test_tools_and_variables_like_transformers(theirs):
    messages = [USER, CALL, {"role": "tool", "content": "3"}]
    ours, expected = both(
        theirs, TOOLS, messages, tools=[SCHEMA], add_generation_prompt=True, enable_thinking=False
    )
    assert ours == expected
    assert '"<é>"' in ours
    assert "<think></think>" in ours


def test_content_in_parts_like_transformers(theirs):
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}]
    ours, expected = both(theirs, MULTIPART, messages, add_generation_prompt=False)
    assert ours == expected == "a|b|"


def test_strict_template_like_transformers(theirs):
    ours, expected = both(theirs, STRICT, [USER], add_generation_prompt=False)
    assert ours == expected
    with pytest.raises(RequestError, match="roles must alternate"):
        render_chat(STRICT, [USER, USER], bos_token="")


def test_strftime_now():
    assert len(render_chat("{{ strftime_now('%Y-%m-%d') }}", [USER])) == 10


def test_pydantic_models_are_read():
    message = types.SimpleNamespace(model_dump=lambda: {"role": "user", "content": "hi"})
    assert "user\nhi" in render_chat(CHATML, [message])


@pytest.mark.parametrize(
    ("template", "messages", "match"),
    [
        ("{% for %}", [USER], "the chat template failed"),
        ("{{ messages[0].content + 1 }}", [USER], "the chat template failed"),
        ("{{ 1 / 0 }}", [USER], "the chat template failed"),
        ("{{ ''.__class__.__mro__ }}", [USER], "unsafe"),
        ("{{ messages.append(1) }}", [USER], "unsafe|not safely"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", [USER], "recursion"),
        ("{% include 'x' %}", [USER], "the chat template failed"),
        (CHATML, [{"role": "user"}], "the chat template failed"),
        (CHATML, [], "messages is empty"),
        (CHATML, "hello", "messages must be a list"),
        (CHATML, USER, "messages must be a list"),
        (CHATML, ["hello"], "a chat message must be a dict"),
        (CHATML, [{"role": "user", "content": object()}], "JSON values"),
    ],
)
def test_what_goes_wrong_is_the_requests_fault(template, messages, match):
    with pytest.raises(RequestError, match=match):
        render_chat(template, messages)


def test_tools_must_be_schemas():
    with pytest.raises(RequestError, match="tools must be"):
        render_chat(CHATML, [USER], tools=[print])
