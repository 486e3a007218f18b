"""Remember which stored faxes are damaged on the disk, and why."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("faxes", sa.Column("harm", sa.String))
    harmed = sa.text("harm IS NOT NULL")
    op.create_index(
        "ix_faxes_harm", "faxes", ["user"], sqlite_where=harmed, postgresql_where=harmed
    )
