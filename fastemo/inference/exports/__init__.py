"""Exported models, used: which file, what it takes, and what runs it."""
