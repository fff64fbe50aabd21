"""What requests used."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def _column(name: str, kind: Any, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "usage",
        *(_column(name, sa.String()) for name in ("request_id", "key_id", "route", "deployment", "operation")),
        _column("at", sa.DateTime(timezone=True)),
        _column("status", sa.Integer()),
        *(
            _column(name, sa.BigInteger())
            for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
        ),
        _column("audio_seconds", sa.Float()),
        _column("images", sa.Integer()),
        _column("estimated", sa.Boolean()),
        _column("duration_s", sa.Float()),
        _column("ttft_s", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("usage_by_time", "usage", ["at"])
    op.create_index("usage_by_key", "usage", ["key_id", "at"])
