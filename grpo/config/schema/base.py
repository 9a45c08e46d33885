"""What every section of the schema builds on: the strict model, the bounded numbers, and hints for error messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
TopP = Annotated[float, Field(gt=0, le=1)]  # engines refuse 0, which leaves no token to sample


class Strict(BaseModel):
    """A model in which unknown keys are errors and whose values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Hint:
    """A phrase that ends error messages about a key, in brackets. It stands in Annotated beside the key's type.

    The full meaning is the key's ``Field(description=...)``, which would make a one-line message too long.
    """

    text: str
