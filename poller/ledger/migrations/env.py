"""How alembic runs here: inside the transaction that the ledger has begun, and without a word."""

from alembic import context

from poller.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite changes a table only by making it anew
)
context.run_migrations()
