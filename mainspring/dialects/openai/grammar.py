"""What a request says about the form of its answer -> Grammar."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from mainspring.errors import BadRequest
from mainspring.types import Grammar

__all__ = ["GuidedFields", "grammar_of"]

Text = Annotated[str, Meta(min_length=1)]
Choices = Annotated[list[Text], Meta(min_length=1)]
Schema = dict[str, Any] | bool


class NamedSchema(Struct, frozen=True):
    name: str | None = None
    schema: Schema | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StructuredOutputs(Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's name for the same; one of the fields is set."""

    json: Schema | str | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    json_object: bool | None = None


class GuidedFields(Struct, frozen=True, kw_only=True):
    """The fields of a body that say what the answer looks like; at most one of them is set."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | str | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None


def grammar_of(fields: GuidedFields) -> Grammar | None:
    """What holds the answer; None: nothing. Raises BadRequest for two that do."""
    own = fields.structured_outputs or StructuredOutputs()
    found = [
        _response(fields.response_format),
        _schema(own.json, "structured_outputs.json"),
        _plain("regex", own.regex, "structured_outputs.regex"),
        _choice(own.choice, "structured_outputs.choice"),
        _plain("lark", own.grammar, "structured_outputs.grammar"),
        Grammar("json_object", field="structured_outputs.json_object") if own.json_object else None,
        _schema(fields.guided_json, "guided_json"),
        _plain("regex", fields.guided_regex, "guided_regex"),
        _choice(fields.guided_choice, "guided_choice"),
        _plain("lark", fields.guided_grammar, "guided_grammar"),
    ]
    said = [grammar for grammar in found if grammar is not None]
    if len(said) > 1:
        raise BadRequest(
            f"{said[1].field}: {said[0].field} already says what the answer looks like; send one",
            param=said[1].field,
        )
    return said[0] if said else None


def _response(format: ResponseFormat | None) -> Grammar | None:
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return Grammar("json_object", field="response_format")
    named, field = format.json_schema, "response_format.json_schema"
    if named is None or named.schema is None:
        place = field if named is None else f"{field}.schema"
        raise BadRequest(f"{place}: this field is required", param=place)
    return _schema(named.schema, f"{field}.schema", strict=bool(named.strict))


def _schema(schema: Schema | str | None, field: str, *, strict: bool = True) -> Grammar | None:
    if schema is None:
        return None
    text = schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()
    return Grammar("json_schema", text, strict, field)


def _choice(choices: list[str] | None, field: str) -> Grammar | None:
    if choices is None:
        return None
    return Grammar("choice", msgspec.json.encode(choices).decode(), field=field)


def _plain(kind: Literal["regex", "lark"], text: str | None, field: str) -> Grammar | None:
    return None if text is None else Grammar(kind, text, field=field)
