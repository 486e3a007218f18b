"""YAML text to frozen configuration."""
