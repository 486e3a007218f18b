"""A PostgreSQL database as the ledger; only `postgresql://` loads this folder and psycopg."""
