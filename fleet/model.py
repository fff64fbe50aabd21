"""The two kinds of pydantic models: those that people write and those that we keep."""

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """What a client sends: unknown fields are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(BaseModel):
    """What we keep or pass between our own processes: unknown fields come from a newer version."""

    model_config = ConfigDict(frozen=True, extra="ignore")
