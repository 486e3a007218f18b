"""How alembic runs here: inside the ledger's transaction, and silently."""

from alembic import context

from poller.ledger.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite changes a table only by making a new one
)
context.run_migrations()
