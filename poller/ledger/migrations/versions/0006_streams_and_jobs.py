"""Give streams (app_id, user_id, direction) what belonged to users, and make fetches jobs.

SQLite cannot change a UNIQUE or a reference. So every table that refers to users is made new beside
the old one and takes its rows; then the old tables go, those that refer to others first.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_CHILDREN_FIRST = (
    "attempts", "backfill_failures", "backfills", "coverage", "failed_slices", "faxes", "users",
)  # fmt: skip


def upgrade() -> None:
    inspector = sa.inspect(op.get_bind())
    columns = {one: [c["name"] for c in inspector.get_columns(one)] for one in _CHILDREN_FIRST}
    for table in _CHILDREN_FIRST:
        op.rename_table(table, f"old_{table}")
    for make in (_streams, _coverage, _failed_slices, _backfills, _faxes, _jobs, _attempts):
        make()
    for table in reversed(_CHILDREN_FIRST):
        _take(table, columns[table])
    op.execute(_MAKE_JOBS)
    for table in _CHILDREN_FIRST:
        op.drop_table(f"old_{table}")
    _indexes()


_RENAMED = {"user": "stream", "force": "refetch", "harm": "damage", "users": "streams"}
_OF_JOBS = ("first_failed_at", "paused_s_at_first_failure", "last_error")
_MAKE_JOBS = f"""
INSERT INTO jobs (kind, subject, stream, due, failures, {", ".join(_OF_JOBS)})
SELECT 'fetch', id, "user", next_attempt_at, failures, {", ".join(_OF_JOBS)}
FROM old_faxes WHERE state != 'stored' ORDER BY id
"""  # noqa: S608


def _take(table: str, columns: list[str]) -> None:
    new = _RENAMED.get(table, table)
    if table == "faxes":
        columns = [one for one in columns if one not in ("next_attempt_at", "failures", *_OF_JOBS)]
    renamed = [_RENAMED.get(column, column) for column in columns]
    op.execute(
        f"INSERT INTO {new} ({_quoted(renamed)}) SELECT {_quoted(columns)} FROM old_{table}"  # noqa: S608
    )


def _quoted(columns: list[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


# -- the tables as they are from here on -----------------------------------------------------------


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


def _stream(table: str) -> tuple["sa.Column[int]", sa.ForeignKeyConstraint]:
    return (
        sa.Column("stream", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["stream"], ["streams.id"], name=f"fk_{table}_stream"),
    )


def _order(table: str) -> sa.CheckConstraint:
    return sa.CheckConstraint('"start" < "end"', name=op.f(f"ck_{table}_order"))


def _streams() -> None:
    op.create_table(
        "streams",
        sa.Column("id", sa.Integer, nullable=False),
        _text("app_id", nullable=False),
        _text("user_id", nullable=False),
        sa.Column("direction", sa.String(16), nullable=False, server_default="received"),
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
        sa.PrimaryKeyConstraint("id", name="pk_streams"),
        sa.UniqueConstraint(
            "app_id", "user_id", "direction", name="uq_streams_app_id_user_id_direction"
        ),
    )


def _coverage() -> None:
    op.create_table(
        "coverage",
        *_stream("coverage"),
        _instant("start", nullable=False),
        _instant("end", nullable=False),
        sa.PrimaryKeyConstraint("stream", "start", name="pk_coverage"),
        _order("coverage"),
    )


def _failed_slices() -> None:
    op.create_table(
        "failed_slices",
        *_stream("failed_slices"),
        _instant("start", nullable=False),
        _instant("end", nullable=False),
        _number("failures"),
        _instant("next_attempt_at", nullable=False),
        _text("reason", nullable=False),
        _flag("dismissed"),
        _text("dismiss_reason"),
        sa.PrimaryKeyConstraint("stream", "start", "end", name="pk_failed_slices"),
        _order("failed_slices"),
    )


def _backfills() -> None:
    op.create_table(
        "backfills",
        sa.Column("id", sa.Integer, nullable=False),
        *_stream("backfills"),
        _instant("start", nullable=False),
        _instant("end", nullable=False),
        _instant("rest_end", nullable=False),
        _instant("asked_at", nullable=False),
        _instant("done_at"),
        _text("last_error"),
        sa.Column("after_fax", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_backfills"),
        _order("backfills"),
    )
    op.create_table(
        "backfill_failures",
        sa.Column("backfill", sa.Integer, nullable=False),
        _instant("start", nullable=False),
        _instant("end", nullable=False),
        _text("reason", nullable=False),
        sa.PrimaryKeyConstraint("backfill", "start", "end", name="pk_backfill_failures"),
        sa.ForeignKeyConstraint(
            ["backfill"], ["backfills.id"], name="fk_backfill_failures_backfill"
        ),
        _order("backfill_failures"),
    )


def _faxes() -> None:
    op.create_table(
        "faxes",
        sa.Column("id", sa.Integer, nullable=False),
        *_stream("faxes"),
        _text("fax_id", nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        _text("path", nullable=False),
        _text("listed", nullable=False),
        _instant("received_at"),
        _instant("first_seen_at", nullable=False),
        _number("attempts"),
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
        _flag("refetch"),
        _text("damage"),
        _text("fax_key"),
        sa.PrimaryKeyConstraint("id", name="pk_faxes"),
        sa.UniqueConstraint("fax_id", "stream", name="uq_faxes_fax_id_stream"),
        sa.UniqueConstraint("path", name="uq_faxes_path"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.Integer, nullable=False),
        *_stream("jobs"),
        _instant("due"),
        _number("failures"),
        _instant("first_failed_at"),
        _seconds("paused_s_at_first_failure"),
        _text("last_error"),
        _number("fence"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("subject", "kind", name="uq_jobs_subject_kind"),
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


def _indexes() -> None:
    op.create_index("ix_attempts_fax", "attempts", ["fax", "id"])
    for name, table, columns, where in (
        ("ix_jobs_due", "jobs", ["stream", "kind", "due"], "due IS NOT NULL"),
        ("ix_faxes_stored_at", "faxes", ["stored_at"], "stored_at IS NOT NULL"),
        ("ix_faxes_damage", "faxes", ["stream"], "damage IS NOT NULL"),
        ("ix_faxes_backfill", "faxes", ["stream"], "found_by = 'backfill'"),
        ("ix_faxes_folded_path", "faxes", [sa.text("lower(path)")], "path != lower(path)"),
        ("uq_faxes_fax_key_stream", "faxes", ["fax_key", "stream"], "fax_key IS NOT NULL"),
    ):
        only = sa.text(where)
        op.create_index(
            name, table, columns,
            unique=name.startswith("uq_"), sqlite_where=only, postgresql_where=only,
        )  # fmt: skip
