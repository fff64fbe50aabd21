"""Claims of gangs and of ports, measured sizings."""

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

_CLAIM_KEY = ["instance_id", "fence", "gpu_uuid", "host_id"]
"""Two hosts of a gang both have a row for their RAM."""
_SIZING_KEY = (
    ("fingerprint", sa.String),
    ("engine", sa.String),
    ("engine_version", sa.String),
    ("gpu_class", sa.String),
    ("tensor_parallel", sa.Integer),
    ("pipeline_parallel", sa.Integer),
    ("batched_tokens", sa.BigInteger),
    ("sequences", sa.BigInteger),
    ("kv_dtype", sa.String),
)


def _number(name: str, default: int) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=False, server_default=str(default))


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=False, server_default="")


def upgrade() -> None:
    _claims()
    with op.batch_alter_table("host") as host:
        host.add_column(_text("fingerprint"))
        host.add_column(_number("port_first", 0))
        host.add_column(_number("port_last", 0))
        host.add_column(_text("fabric_address"))
    op.create_table(
        "port_claim",
        sa.Column("host_id", sa.String(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.String(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("host_id", "port"),
    )
    _sizings("measured_sizing", sa.Column("measured", sa.JSON(), nullable=False))
    _sizings("did_not_fit", sa.Column("booked_bytes", sa.BigInteger(), nullable=False))


def _claims() -> None:
    """SQLite keeps a table's key for good: there the claims move into a new table."""
    numbers = [_number("rank", 0), _number("hosts", 1), _number("priority", 1)]
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("claim_by_host", "claim")
        op.rename_table("claim", "claim_before")
        op.create_table(
            "claim",
            sa.Column("instance_id", sa.String(), nullable=False),
            sa.Column("fence", sa.BigInteger(), nullable=False),
            sa.Column("gpu_uuid", sa.String(), nullable=False),
            sa.Column("host_id", sa.String(), nullable=False),
            sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
            sa.Column("state", sa.String(), nullable=False),
            sa.Column("placement", sa.JSON(), nullable=False),
            sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
            *numbers,
            sa.PrimaryKeyConstraint(*_CLAIM_KEY),
        )
        kept = "instance_id, fence, gpu_uuid, host_id, memory_bytes, state, placement, expires_at"
        op.execute(f"INSERT INTO claim ({kept}) SELECT {kept} FROM claim_before")  # noqa: S608 (our own words)
        op.drop_table("claim_before")
        op.create_index("claim_by_host", "claim", ["host_id", "state"])
    else:
        for column in numbers:
            op.add_column("claim", column)
        op.drop_constraint("claim_pkey", "claim", type_="primary")
        op.create_primary_key("claim_pkey", "claim", _CLAIM_KEY)
    op.create_index("claim_by_expiry", "claim", ["expires_at"])


def _sizings(table: str, value: sa.Column[object]) -> None:
    op.create_table(
        table,
        *(sa.Column(name, kind(), nullable=False) for name, kind in _SIZING_KEY),
        value,
        sa.Column("instance_id", sa.String(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint(*(name for name, _ in _SIZING_KEY)),
    )
    op.create_index(f"{table}_by_time", table, ["at"])
