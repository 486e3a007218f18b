"""Keep the ticket of a fax that is being published, and the description of its file."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("faxes", sa.Column("staged", sa.String()))
