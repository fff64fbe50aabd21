"""Public names of models, and providers beside our own deployments."""

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=False)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(), nullable=False)


def _changes() -> list[sa.Column[object]]:
    return [
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("create_key", sa.String(), nullable=False),
        sa.Column("change_key", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
    ]


def upgrade() -> None:
    op.create_table(
        "route", _text("name"), _json("labels"), _json("spec"), *_changes(), sa.PrimaryKeyConstraint("name")
    )
    op.create_table(
        "provider", _text("name"), _json("spec"), _text("sealed_key"), *_changes(), sa.PrimaryKeyConstraint("name")
    )
