"""Keep what was deleted at eFax, and the faxes that we send."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("faxes", sa.Column("deleted_at", sa.BigInteger()))
    op.add_column("jobs", sa.Column("stored_before", sa.BigInteger()))
    for name, table, columns, condition in (
        ("ix_faxes_deleted_at", "faxes", ["deleted_at"], "deleted_at IS NOT NULL"),
        ("ix_jobs_errand", "jobs", ["kind", "due"], "kind != 'fetch'"),
    ):
        where = sa.text(condition)
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "sends",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("stream", sa.Integer(), nullable=False),
        sa.Column("transaction_id", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("code", sa.String()),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("fax_id", sa.String()),
        sa.Column("status", sa.String()),
        sa.Column("error", sa.String()),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.BigInteger()),
        sa.Column("accepted_at", sa.BigInteger()),
        sa.Column("transmitted_at", sa.BigInteger()),
        sa.Column("late_at", sa.BigInteger()),
        sa.Column("late_said", sa.Boolean(), server_default="0", nullable=False),
        sa.Column("finished_at", sa.BigInteger()),
        sa.Column("arrived", sa.Integer()),
        sa.ForeignKeyConstraint(["stream"], ["streams.id"], name="fk_sends_stream_streams"),
        sa.ForeignKeyConstraint(["arrived"], ["faxes.id"], name="fk_sends_arrived_faxes"),
        sa.PrimaryKeyConstraint("id", name="pk_sends"),
        sa.UniqueConstraint("transaction_id", name="uq_sends_transaction_id"),
    )
    op.create_index("ix_sends_stream", "sends", ["stream", "asked_at"])
    for name, column, condition in (
        ("ix_sends_open", "stream", "finished_at IS NULL"),
        ("ix_sends_in_doubt", "asked_at", "state = 'in-doubt'"),
        ("ix_sends_arrived", "arrived", "arrived IS NOT NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, "sends", [column], sqlite_where=where, postgresql_where=where)
