"""Leases on accounts, the nodes that take them, and notices for the node that holds an account."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("app_id", sa.String(), primary_key=True),
        sa.Column("holder", sa.String()),
        sa.Column("term", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("renewed", sa.BigInteger(), nullable=False, server_default="0"),
        sa.UniqueConstraint("app_id", "term"),
    )
    op.create_table(
        "nodes",
        sa.Column("run", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("oldest", sa.String(), nullable=False),
        sa.Column("newest", sa.String(), nullable=False),
        sa.Column("accounts", sa.String(), nullable=False),
        sa.Column("users", sa.BigInteger(), nullable=False),
        sa.Column("lag_s", sa.Float(), nullable=False),
        sa.Column("stores", sa.Boolean(), nullable=False, server_default="0"),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger()),
        sa.Column("draining", sa.Boolean(), nullable=False, server_default="0"),
    )
    op.create_table(
        "notices",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("app_id", sa.String(), nullable=False),
        sa.Column("named", sa.String(), nullable=False),
    )
