"""Commands that reproduce every published number."""
