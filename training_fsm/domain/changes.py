"""Partial models: every field of a model may be there or not, and what is not there is told apart from null."""

from collections.abc import Mapping
from typing import Annotated, cast

from pydantic import Field, JsonValue, create_model, model_serializer

from training_fsm.domain.model import Model


class Changes(Model):
    """Base of the partial models; writes only what was given."""

    @model_serializer
    def _only_given(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


def changes_of(model: type[Model], sections: frozenset[type[Model]], without: frozenset[str]) -> type[Changes]:
    """The partial model of `model`: the same fields with their own constraints, none required, partial sections.

    Validators that look at several fields are left out: they hold for the whole only.
    """
    fields: dict[str, object] = {}
    for name, field in model.model_fields.items():
        if name in without:
            continue
        section = _section(model, name, sections)
        annotation = field.annotation if section is None else changes_of(section, sections, without)
        absent = Field(default=None, validate_default=False, description=field.description)
        fields[name] = Annotated[(annotation, *field.metadata, absent)]
    partial = create_model(f"{model.__name__}Changes", __base__=Changes, __doc__=model.__doc__, **fields)  # type: ignore[call-overload]
    return cast(type[Changes], partial)


def merged(
    model: type[Model],
    base: Mapping[str, JsonValue],
    changes: Mapping[str, JsonValue],
    sections: frozenset[type[Model]],
) -> dict[str, JsonValue]:
    """The fields of `base` with those of `changes` in their place; sections field by field, all else as a whole."""
    result = dict(base)
    for name, value in changes.items():
        section, old = _section(model, name, sections), base.get(name)
        if section is not None and isinstance(old, dict) and isinstance(value, dict):
            result[name] = merged(section, old, value, sections)
        else:
            result[name] = value
    return result


def leaves(value: JsonValue, path: str = "") -> dict[str, JsonValue]:
    """Nested objects as `agent.hyperparameters.gamma`: one entry for each value that is no object, or an empty one."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    found: dict[str, JsonValue] = {}
    for name, child in value.items():
        found |= leaves(child, f"{path}.{name}" if path else name)
    return found


def changeable(
    model: type[Model], fields: Mapping[str, JsonValue], sections: frozenset[type[Model]], path: str = ""
) -> dict[str, JsonValue]:
    """What can be changed by itself, as `agent.hyperparameters.gamma`: the fields of sections, all else as a whole."""
    found: dict[str, JsonValue] = {}
    for name, value in fields.items():
        section = _section(model, name, sections)
        if section is not None and isinstance(value, dict):
            found |= changeable(section, value, sections, f"{path}{name}.")
        else:
            found[path + name] = value
    return found


def _section(model: type[Model], name: str, sections: frozenset[type[Model]]) -> type[Model] | None:
    annotation = model.model_fields[name].annotation if name in model.model_fields else None
    return annotation if isinstance(annotation, type) and annotation in sections else None
