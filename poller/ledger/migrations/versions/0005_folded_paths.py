"""Find a path that differs only in case, which on some file systems is the same name."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    has_capitals = sa.text("path != lower(path)")
    op.create_index(
        "ix_faxes_folded_path", "faxes", [sa.text("lower(path)")],
        sqlite_where=has_capitals, postgresql_where=has_capitals,
    )  # fmt: skip
