"""A real model, asked for JSON."""

import json
from pathlib import Path

import jsonschema

import llmir

from .json_schemas import record

PERSON = record(
    name={"type": "string", "maxLength": 30},
    age={"type": "integer", "minimum": 0, "maximum": 120},
    city={"enum": ["Paris", "London", "Rome"]},
)
QUESTION = "Anna is 42 and lives in Rome. Answer in JSON with name, age and city."


def test_a_model_answers_in_json(demo_artifact: Path) -> None:
    llm = llmir.LLM(demo_artifact)
    conversation = [{"role": "user", "content": QUESTION}]
    form = llmir.StructuredOutputsParams(json=PERSON, whitespace_pattern=" |\\n *")
    asked = [
        llmir.SamplingParams(structured_outputs=form, temperature=0, max_tokens=100),
        llmir.SamplingParams(structured_outputs=form, temperature=1, seed=1, max_tokens=100),
        llmir.SamplingParams(
            structured_outputs=llmir.StructuredOutputsParams(json_object=True),
            temperature=0,
            max_tokens=100,
        ),
        llmir.SamplingParams(temperature=0, max_tokens=8),
    ]
    greedy, random, any_object, free = llm.chat([conversation] * 4, asked)
    for output in (greedy.outputs[0], random.outputs[0]):
        assert output.finish_reason == "stop"
        jsonschema.validate(json.loads(output.text), PERSON)
    assert "Anna" in greedy.outputs[0].text
    assert isinstance(json.loads(any_object.outputs[0].text), dict)
    assert llm.chat(conversation, asked[3])[0].outputs == free.outputs
