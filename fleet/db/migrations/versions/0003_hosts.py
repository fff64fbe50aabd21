"""The installation's keys, hosts behind one door, telemetry, audit."""

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def _text(name: str, default: str = "") -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=False, server_default=default)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(), nullable=False, server_default="{}")


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=True)


def _number(name: str, default: int) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=False, server_default=str(default))


def upgrade() -> None:
    with op.batch_alter_table("endpoint") as endpoint:
        endpoint.add_column(sa.Column("host_id", sa.String(), nullable=True))
        endpoint.create_index("ix_endpoint_host_id", ["host_id"])
    with op.batch_alter_table("host") as host:
        for name in ("public_key", "joined_with", "boot_id", "tunnel_url"):
            host.add_column(_text(name))
        for name in ("reserved_for", "given_labels", "reserve", "status"):
            host.add_column(_json(name))
        host.add_column(_text("reach", "auto"))
        host.add_column(sa.Column("tunnel_only", sa.Boolean(), nullable=False, server_default=sa.false()))
        host.add_column(_time("certificate_expires_at"))
        host.add_column(_time("status_at"))
    with op.batch_alter_table("gpu") as gpu:
        gpu.add_column(sa.Column("foreign_bytes", sa.BigInteger(), nullable=False, server_default="0"))
        gpu.add_column(_json("details"))
    with op.batch_alter_table("join_token") as token:
        token.add_column(_number("max_uses", 1))
        token.add_column(_number("uses", 0))
        token.add_column(_time("revoked_at"))
    op.execute("UPDATE join_token SET uses = 1 WHERE used_at IS NOT NULL")
    op.create_table(
        "authority",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("certificate", sa.String(), nullable=False),
        sa.Column("sealed_key", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "host_status",
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("host_id", "at"),
    )
    op.create_index("host_status_by_time", "host_status", ["at"])
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("peer", sa.String(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("audit_by_time", "audit", ["at"])
