"""Room that is kept for those who cannot take it yet, who was asked to go for it, and defragmentations."""

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=False)


def _time(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "nomination",
        _text("nominee"),
        _text("host_id"),
        _text("gpu_uuid"),
        _text("deployment"),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        _time("expires_at"),
        sa.PrimaryKeyConstraint("nominee", "host_id", "gpu_uuid"),
    )
    op.create_index("ix_nomination_deployment", "nomination", ["deployment"])
    op.create_index("nomination_by_expiry", "nomination", ["expires_at"])
    op.create_table(
        "eviction",
        _text("instance_id"),
        _text("deployment"),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        _text("nominee"),
        _time("by", nullable=True),
        _text("reason"),
        _time("expires_at"),
        sa.PrimaryKeyConstraint("instance_id"),
    )
    op.create_index("ix_eviction_nominee", "eviction", ["nominee"])
    op.create_table(
        "defragmentation",
        _text("deployment"),
        _text("run_id"),
        sa.Column("running", sa.Boolean(), nullable=False),
        _text("message"),
        sa.Column("durable", sa.JSON(), nullable=False),
        sa.Column("projection", sa.Integer(), nullable=False),
        _time("started_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("deployment"),
    )
