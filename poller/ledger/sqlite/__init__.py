"""Everything that only SQLite has: its file, settings, errors and copies. Nothing else knows of it."""
