"""The base of every data model: frozen, strict about unknown keys, exact about numbers that JSON cannot hold."""

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A frozen value. Unknown keys are refused with their path; infinities and NaN are written as strings."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="strings",
        use_attribute_docstrings=True,
        validate_default=True,
    )
