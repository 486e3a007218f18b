"""What is SQLite's alone: its file, settings, errors and copies. Nothing else knows of it."""
