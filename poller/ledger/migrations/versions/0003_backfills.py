"""Remember which old windows an operator asked for, and how far they are listed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "backfills",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("user", sa.Integer, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("end", sa.BigInteger, nullable=False),
        sa.Column("rest_end", sa.BigInteger, nullable=False),
        sa.Column("asked_at", sa.BigInteger, nullable=False),
        sa.Column("done_at", sa.BigInteger),
        sa.Column("last_error", sa.String),
        sa.Column("after_fax", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_backfills"),
        sa.ForeignKeyConstraint(["user"], ["users.id"], name="fk_backfills_user"),
        sa.CheckConstraint('"start" < "end"', name=op.f("ck_backfills_order")),
    )
    op.create_table(
        "backfill_failures",
        sa.Column("backfill", sa.Integer, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("end", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("backfill", "start", "end", name="pk_backfill_failures"),
        sa.ForeignKeyConstraint(
            ["backfill"], ["backfills.id"], name="fk_backfill_failures_backfill"
        ),
        sa.CheckConstraint('"start" < "end"', name=op.f("ck_backfill_failures_order")),
    )
    found_by_it = sa.text("found_by = 'backfill'")
    op.create_index(
        "ix_faxes_backfill", "faxes", ["user"],
        sqlite_where=found_by_it, postgresql_where=found_by_it,
    )  # fmt: skip
