"""Schemas of the kinds that JSONSchemaBench collects: tools, configurations, records, documents."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def record(required: list[str] | None = None, **properties: Schema) -> Schema:
    """A closed object with these properties, all of them required unless named."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


STRING: Schema = {"type": "string", "maxLength": 12}
INTEGER: Schema = {"type": "integer", "minimum": -1000, "maximum": 1000}

SCHEMAS: dict[str, Schema] = {
    # scalars
    "string": {"type": "string", "minLength": 2, "maxLength": 8},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "integer range": {"type": "integer", "minimum": 17, "maximum": 4321},
    "exclusive range": {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3},
    "number range": {"type": "number", "minimum": -0.5, "maximum": 99.25},
    "exclusive number": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "multiple of": {"type": "integer", "minimum": 0, "maximum": 500, "multipleOf": 7},
    "cents": {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.01},
    "several types": {"type": ["integer", "null", "boolean"], "minimum": 0, "maximum": 99},
    # constants
    "enum": {"enum": ["red", "green", "light blue", "naïve", 'quo"ted', "back\\slash", "日本"]},
    "mixed enum": {"enum": [1, 2.5, None, True, "x", [1, 2], {"a": {"b": []}}]},
    "typed enum": {"type": "string", "enum": ["a", "b", 3]},
    "const": {"const": {"version": 2, "tags": ["x", "y"], "nested": {"ok": True}}},
    "const member": record(type={"const": "event"}, at=INTEGER),
    # strings
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    "alternatives": {"type": "string", "pattern": "^(draft|final)(-v[1-9][0-9]?)?$"},
    "pattern and length": {"type": "string", "pattern": "^[a-z]+$", "minLength": 3, "maxLength": 5},
    "pattern inside": {"type": "string", "pattern": "[0-9]{3}", "maxLength": 6},
    "formats": record(
        id={"type": "string", "format": "uuid"},
        day={"type": "string", "format": "date"},
        host={"type": "string", "format": "ipv4"},
        mail={"type": "string", "format": "email", "maxLength": 20},
    ),
    # objects
    "person": record(name=STRING, age={"type": "integer", "minimum": 0, "maximum": 150}),
    "optional members": record(
        ["id"], id=INTEGER, name=STRING, note=STRING, done={"type": "boolean"}
    ),
    "nothing required": record([], a=INTEGER, b=INTEGER, c=INTEGER),
    "nested objects": record(
        user=record(
            name=STRING,
            address=record(street=STRING, zip={"type": "string", "pattern": "^[0-9]{5}$"}),
        ),
        score={"type": "number", "minimum": 0, "maximum": 1},
    ),
    "map": {"type": "object", "additionalProperties": INTEGER, "maxProperties": 3},
    "open object": {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}},
        "required": ["kind"],
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 3,
    },
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^x-[a-z]{1,3}$": STRING, "^n[0-9]{1,2}$": INTEGER},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "required but undeclared": {
        "type": "object",
        "properties": {"a": INTEGER},
        "required": ["a", "b"],
        "additionalProperties": {"type": "null"},
        "maxProperties": 2,
    },
    "not an empty map": {
        "type": "object",
        "properties": {"minProperties": {"const": {"minProperties": 9}}},
        "required": ["minProperties"],
        "additionalProperties": {"type": "boolean"},
        "minProperties": 2,
        "maxProperties": 3,
    },
    "odd names": record(
        **{"two words": INTEGER, 'a"b': INTEGER, "ünï": INTEGER, "": INTEGER, "\n": INTEGER}
    ),
    # arrays
    "bounded array": {"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 4},
    "empty array": {"type": "array", "items": STRING, "maxItems": 0},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "string", "maxLength": 4}, INTEGER, {"type": "boolean"}],
        "items": False,
        "minItems": 3,
    },
    "matrix": {
        "type": "array",
        "minItems": 2,
        "maxItems": 2,
        "items": {"type": "array", "items": {"enum": [0, 1]}, "minItems": 3, "maxItems": 3},
    },
    "array of objects": {
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": record(sku={"type": "string", "pattern": "^[A-Z0-9]{4}$"}, count=INTEGER),
    },
    # combinations
    "anyOf": {"anyOf": [{"type": "null"}, INTEGER, record(error=STRING)]},
    "nullable member": record(value={"anyOf": [STRING, {"type": "null"}]}),
    "oneOf by tag": {
        "oneOf": [
            record(kind={"const": "circle"}, radius={"type": "number", "minimum": 0, "maximum": 9}),
            record(kind={"const": "square"}, side={"type": "number", "minimum": 0, "maximum": 9}),
        ]
    },
    "allOf": {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"type": "object", "properties": {"b": STRING}, "required": ["b"]},
        ],
        "maxProperties": 2,
    },
    "narrowed": {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 12}, {"multipleOf": 3}]},
    "anyOf with siblings": {
        "type": "object",
        "properties": {"id": INTEGER},
        "required": ["id"],
        "maxProperties": 2,
        "anyOf": [
            {"properties": {"a": STRING}, "required": ["a"]},
            {"properties": {"b": INTEGER}, "required": ["b"]},
        ],
    },
    # references
    "defs": {
        "$defs": {"point": record(x=INTEGER, y=INTEGER)},
        **record(start={"$ref": "#/$defs/point"}, end={"$ref": "#/$defs/point"}),
    },
    "draft 7 definitions": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"level": {"enum": ["low", "high"]}},
        **record(level={"$ref": "#/definitions/level"}),
    },
    "tree": {
        "$defs": {
            "node": record(
                ["value"],
                value=INTEGER,
                children={"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            )
        },
        "$ref": "#/$defs/node",
    },
    "linked list": {
        "$defs": {
            "list": {
                "anyOf": [{"type": "null"}, record(head=INTEGER, tail={"$ref": "#/$defs/list"})]
            }
        },
        "$ref": "#/$defs/list",
    },
    "mutual recursion": {
        "$defs": {
            "value": {"anyOf": [INTEGER, {"$ref": "#/$defs/array"}]},
            "array": {"type": "array", "items": {"$ref": "#/$defs/value"}, "maxItems": 2},
        },
        "$ref": "#/$defs/array",
    },
    "reference with siblings": {
        "$defs": {"count": {"type": "integer", "minimum": 0}},
        **record(n={"$ref": "#/$defs/count", "maximum": 20, "description": "how many"}),
    },
    # as they are met
    "tool call": record(
        name={"type": "string", "enum": ["get_weather"]},
        arguments=record(
            ["city"],
            city={"type": "string", "maxLength": 10, "description": "The city to look in"},
            unit={"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            days={"type": "integer", "minimum": 1, "maximum": 14},
        ),
    ),
    "extraction": {
        "title": "Invoice",
        "examples": [{"number": "INV-1"}],
        **record(
            number={"type": "string", "pattern": "^INV-[0-9]{1,6}$"},
            issued={"type": "string", "format": "date-time"},
            total={"type": "number", "minimum": 0, "maximum": 100000},
            currency={"enum": ["EUR", "USD", "CHF"]},
            lines={
                "type": "array",
                "minItems": 1,
                "maxItems": 2,
                "items": record(
                    text=STRING, price={"type": "number", "minimum": 0, "maximum": 999}
                ),
            },
        ),
    },
    "configuration": record(
        ["image"],
        image={"type": "string", "pattern": "^[a-z]{1,8}(:[0-9]+\\.[0-9]+)?$"},
        ports={
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 65535},
            "maxItems": 3,
        },
        env={"type": "object", "additionalProperties": STRING, "maxProperties": 2},
        restart={"enum": ["no", "always", "on-failure"]},
    ),
}
"""Every output of these comes to an end: strings, arrays and maps are bounded."""

UNSUPPORTED: dict[str, tuple[Schema, str]] = {
    "unique items": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "not": ({"not": {"type": "null"}}, "not"),
    "if": ({"if": {"type": "null"}, "then": {}}, "if"),
    "contains": ({"type": "array", "contains": {"type": "null"}}, "contains"),
    "property names": ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
    "dependent": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    "unevaluated": ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    "format": ({"type": "string", "format": "iri"}, "Unknown format: iri"),
    "look-ahead": ({"type": "string", "pattern": "^(?=a)b"}, "look-ahead"),
    "remote": ({"$ref": "https://example.org/schema.json"}, "does not fetch"),
    "overlapping oneOf": ({"oneOf": [{"minimum": 3}, {"maximum": 5}]}, "oneOf"),
    "nested": ({"type": "object", "properties": {"a": {"not": {}}}}, "not"),
    "members that may repeat": (
        record(a={"type": "object", "additionalProperties": INTEGER, "minProperties": 2}),
        "minProperties is 2, and 0 members are required",
    ),
    "some of many": (
        {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2},
        "min/maxProperties only supported",
    ),
}
"""Valid schemas that llguidance does not implement, and a word of its reason."""

INVALID: dict[str, tuple[Schema, str]] = {
    "type": ({"type": "strin"}, "Invalid type: strin"),
    "kind of type": ({"type": 5}, "type must be a string"),
    "required": ({"required": "a"}, "Expected array for 'required'"),
    "bound": ({"type": "integer", "minimum": "5"}, "Expected f64 for 'minimum'"),
    "length": ({"type": "string", "maxLength": -1}, "maxLength"),
    "reference": ({"$ref": "#/$defs/nope"}, "does not exist"),
    "pattern": ({"type": "string", "pattern": "("}, "unclosed group"),
    "empty range": ({"type": "integer", "minimum": 5, "maximum": 3}, "greater than maximum"),
    "empty enum": ({"enum": []}, "Unsatisfiable"),
    "a loop": ({"$ref": "#"}, "NoExtension"),
}
"""Schemas that are wrong, or that nothing satisfies."""
