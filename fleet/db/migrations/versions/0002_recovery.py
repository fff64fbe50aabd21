"""Revisions, rollouts, traffic, maintenance, faulty GPUs, and what workflows can be made anew from."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def _text(name: str, default: str = "") -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=False, server_default=default)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(), nullable=False, server_default="{}")


def _no(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false())


def upgrade() -> None:
    with op.batch_alter_table("deployment") as deployment:
        deployment.add_column(sa.Column("rollout", sa.JSON(), nullable=True))
        deployment.add_column(_json("traffic"))
        deployment.add_column(_json("durable"))
    with op.batch_alter_table("instance") as instance:
        instance.add_column(_json("durable"))
    with op.batch_alter_table("endpoint") as endpoint:
        endpoint.add_column(sa.Column("launch", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("host") as host:
        host.add_column(_text("maintenance", "none"))
        host.add_column(_text("maintenance_message"))
        host.add_column(sa.Column("lost_at", sa.DateTime(timezone=True), nullable=True))
        host.add_column(_no("replacement_paused"))
        host.add_column(_json("durable"))
    with op.batch_alter_table("gpu") as gpu:
        gpu.add_column(_no("cordoned"))
        gpu.add_column(_text("cordon_reason"))
    op.create_table(
        "gpu_fault",
        sa.Column("gpu_uuid", sa.String(), nullable=False),
        sa.Column("instance_id", sa.String(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("gpu_uuid", "instance_id", "fence"),
    )
    op.create_table(
        "revision",
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("engine_version", sa.String(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("deployment", "revision"),
    )
    op.create_table(
        "traffic",
        sa.Column("gateway", sa.String(), nullable=False),
        sa.Column("instance_id", sa.String(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("launch", sa.Integer(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("latency", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("gateway", "instance_id", "fence"),
    )
    op.create_index("traffic_by_deployment", "traffic", ["deployment", "launch"])
