"""How Alembic runs the migrations: on the connection, and in the transaction, that it is handed."""

from alembic import context

from blip.integrations.catalog.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
