"""Tell files that cannot be read from files that are not what was stored."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "faxes", sa.Column("unreadable", sa.Boolean(), nullable=False, server_default="0")
    )
