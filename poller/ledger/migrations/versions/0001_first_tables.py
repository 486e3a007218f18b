"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _meta()
    _accounts()
    _users()
    _coverage()
    _failed_slices()
    _faxes()
    _attempts()


def _number(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.Integer, nullable=False, server_default="0")


def _seconds(name: str) -> "sa.Column[float]":
    return sa.Column(name, sa.Float, nullable=False, server_default="0")


def _flag(name: str) -> "sa.Column[bool]":
    return sa.Column(name, sa.Boolean, nullable=False, server_default="0")


def _text(name: str, *, nullable: bool = True) -> "sa.Column[str]":
    return sa.Column(name, sa.String, nullable=nullable)


def _instant(name: str, *, nullable: bool = True) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _meta() -> None:
    op.create_table(
        "meta",
        _text("name", nullable=False),
        _text("value", nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_meta"),
    )


def _accounts() -> None:
    op.create_table(
        "accounts",
        _text("app_id", nullable=False),
        _text("account", nullable=False),
        _instant("suspended_until"),
        _text("reason"),
        _seconds("paused_s"),
        _instant("paused_since"),
        sa.Column("sign_in_level", sa.Float),
        _instant("sign_in_at"),
        sa.PrimaryKeyConstraint("app_id", name="pk_accounts"),
    )


def _users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Integer, nullable=False),
        _text("app_id", nullable=False),
        _text("user_id", nullable=False),
        _text("account", nullable=False),
        _text("name", nullable=False),
        _instant("our_first_seen", nullable=False),
        _instant("pinned_start"),
        _text("configured_start"),
        _flag("removed"),
        _instant("last_poll_at"),
        _instant("last_success_at"),
        _text("last_error"),
        _number("failed_polls"),
        _instant("refused_until"),
        _number("refusals"),
        _instant("sweep_end"),
        _instant("deep_sweep_end"),
        _number("discovered"),
        _number("stored"),
        _number("pending"),
        _number("quarantined"),
        _number("dismissed"),
        _number("damaged"),
        _instant("last_received_at"),
        _instant("last_stored_at"),
        _seconds("late_max_s"),
        _number("found_by_sweep"),
        _number("found_by_deep_sweep"),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("app_id", "user_id", name="uq_users_app_id_user_id"),
    )


def _coverage() -> None:
    op.create_table(
        "coverage",
        sa.Column("user", sa.Integer, nullable=False),
        _instant("start", nullable=False),
        _instant("end", nullable=False),
        sa.PrimaryKeyConstraint("user", "start", name="pk_coverage"),
        sa.ForeignKeyConstraint(["user"], ["users.id"], name="fk_coverage_user"),
        sa.CheckConstraint('"start" < "end"', name=op.f("ck_coverage_order")),
    )


def _failed_slices() -> None:
    op.create_table(
        "failed_slices",
        sa.Column("user", sa.Integer, nullable=False),
        _instant("start", nullable=False),
        _instant("end", nullable=False),
        _number("failures"),
        _instant("next_attempt_at", nullable=False),
        _text("reason", nullable=False),
        _flag("dismissed"),
        _text("dismiss_reason"),
        sa.PrimaryKeyConstraint("user", "start", "end", name="pk_failed_slices"),
        sa.ForeignKeyConstraint(["user"], ["users.id"], name="fk_failed_slices_user"),
        sa.CheckConstraint('"start" < "end"', name=op.f("ck_failed_slices_order")),
    )


def _faxes() -> None:
    op.create_table(
        "faxes",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("user", sa.Integer, nullable=False),
        _text("fax_id", nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        _text("path", nullable=False),
        _text("listed", nullable=False),
        _instant("received_at"),
        _instant("first_seen_at", nullable=False),
        _number("attempts"),
        _number("failures"),
        _instant("first_failed_at"),
        _seconds("paused_s_at_first_failure"),
        _instant("next_attempt_at"),
        _text("last_error"),
        _text("last_problem"),
        _instant("stored_at"),
        _text("file"),
        _text("format"),
        sa.Column("bytes", sa.BigInteger),
        _text("sha256"),
        sa.Column("pages", sa.Integer),
        _flag("damaged"),
        _text("found_by", nullable=False),
        _instant("first_window_start"),
        _instant("first_window_end"),
        _instant("last_window_start"),
        _instant("last_window_end"),
        _instant("last_listed_at", nullable=False),
        _instant("quarantined_at"),
        _instant("dismissed_at"),
        _text("dismiss_reason"),
        _flag("force"),
        sa.PrimaryKeyConstraint("id", name="pk_faxes"),
        sa.UniqueConstraint("fax_id", "user", name="uq_faxes_fax_id_user"),
        sa.UniqueConstraint("path", name="uq_faxes_path"),
        sa.ForeignKeyConstraint(["user"], ["users.id"], name="fk_faxes_user"),
        sa.CheckConstraint(
            "(next_attempt_at IS NOT NULL) = (state IN ('pending', 'quarantined'))",
            name=op.f("ck_faxes_due"),
        ),
    )
    op.create_index(
        "ix_faxes_due",
        "faxes",
        ["user", "state", "next_attempt_at"],
        sqlite_where=sa.text("next_attempt_at IS NOT NULL"),
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.create_index(
        "ix_faxes_stored_at",
        "faxes",
        ["stored_at"],
        sqlite_where=sa.text("stored_at IS NOT NULL"),
        postgresql_where=sa.text("stored_at IS NOT NULL"),
    )


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("fax", sa.Integer, nullable=False),
        _instant("at", nullable=False),
        _text("outcome", nullable=False),
        _text("error"),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sa.ForeignKeyConstraint(["fax"], ["faxes.id"], name="fk_attempts_fax"),
    )
    op.create_index("ix_attempts_fax", "attempts", ["fax", "id"])
