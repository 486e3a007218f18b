"""Keep each account's last token, sealed, so that a restart needs no sign-in."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("accounts", sa.Column("sealed_token", sa.String()))
    op.add_column("accounts", sa.Column("token_at", sa.BigInteger()))
    op.add_column("accounts", sa.Column("token_ends_at", sa.BigInteger()))
