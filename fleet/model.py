"""The two kinds of pydantic models: those that people write and those that we keep."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

LARGEST = 2**63 - 1
"""What databases can count to."""
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Text = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
"""PostgreSQL keeps no NUL in a text."""


class Wire(BaseModel):
    """What a client sends: unknown fields are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(BaseModel):
    """What we keep or pass between our own processes: unknown fields come from a newer version."""

    model_config = ConfigDict(frozen=True, extra="ignore")
