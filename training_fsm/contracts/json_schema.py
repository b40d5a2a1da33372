"""From a model to its JSON Schema: what we accept is closed, what others read of ours or we of others is open."""

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ID_PREFIX = "urn:training-fsm:"
COMPONENTS = "#/components/schemas/{model}"

Direction = Literal["accepted", "read"]
"""`accepted`: messages to us, where a field that nobody knows is refused. `read`: messages whose reader ignores it."""

_MODES: dict[Direction, JsonSchemaMode] = {"accepted": "validation", "read": "serialization"}
_NON_FINITE: JsonSchemaValue = {"enum": ["NaN", "Infinity", "-Infinity"]}


class ContractSchema(GenerateJsonSchema):
    """pydantic's generator, which has two modes; ours are told apart by them and keep their definitions apart."""

    def field_title_should_be_set(self, schema: object) -> bool:
        """Name models only: the title of a field says its name once more."""
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Leave what is read open: a field may be added to it within a schema version."""
        made = super().model_schema(schema)
        if self.mode == "serialization":
            made.pop("additionalProperties", None)
        return made

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        """Add what is written for a number that JSON does not have, where no bound of the field forbids it."""
        made = super().float_schema(schema)
        return {"anyOf": [made, _NON_FINITE]} if self.mode == "serialization" and made == {"type": "number"} else made

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Leave out a default of null that the field itself would not take: it stands for absence."""
        if self.get_default_value(schema) is not None:
            return super().default_schema(schema)
        made = self.generate_inner(schema["schema"])
        return made | {"default": None} if _takes_null(made) else made

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Any of the kinds: open ones can overlap. AsyncAPI's discriminator has another shape than OpenAPI's."""
        made = super().tagged_union_schema(schema)
        made.pop("discriminator", None)
        return {"anyOf": made.pop("oneOf"), **made}

    def ser_schema(
        self, schema: "core_schema.SerSchema | core_schema.IncExSeqSerSchema | core_schema.IncExDictSerSchema"
    ) -> JsonSchemaValue | None:
        """Take a model's fields also where it has a serializer of its own: ours only leave out what was not given."""
        return None if schema["type"] == "function-plain" else super().ser_schema(schema)


def _takes_null(made: JsonSchemaValue) -> bool:
    kinds = made.get("anyOf", [made])
    return any(kind.get("type") == "null" or not kind.keys() - {"description"} for kind in kinds)


def schema_file(kind: object, direction: Direction, name: str) -> JsonSchemaValue:
    """The schema of a type, whole in itself, under an id that ends in the name."""
    adapter = TypeAdapter[object](kind)  # type: ignore[arg-type]  # any type that pydantic takes
    made = adapter.json_schema(mode=_MODES[direction], schema_generator=ContractSchema)
    return {"$schema": DIALECT, "$id": f"{ID_PREFIX}{name}", **_without_none(made)}


def components(kinds: Mapping[str, tuple[object, Direction]]) -> tuple[dict[str, JsonSchemaValue], JsonSchemaValue]:
    """The schemas of many types by name, and the definitions that they share, for AsyncAPI's components."""
    adapters = [
        (name, _MODES[direction], TypeAdapter[object](kind))  # type: ignore[arg-type]
        for name, (kind, direction) in kinds.items()
    ]
    made, shared = TypeAdapter.json_schemas(adapters, ref_template=COMPONENTS, schema_generator=ContractSchema)
    return {str(name): schema for (name, _), schema in made.items()}, _without_none(shared["$defs"])


def summary(kind: type) -> str:
    """What the class says of itself, in one line."""
    return " ".join((kind.__doc__ or "").split())


def _without_none(made: JsonSchemaValue) -> JsonSchemaValue:
    """Docstrings speak Python; what they call None is null on the wire."""
    return {
        name: re.sub(r"\bNone\b", "null", part)
        if name == "description" and isinstance(part, str)
        else _without_none(part)
        if isinstance(part, dict)
        else part
        for name, part in made.items()
    }
