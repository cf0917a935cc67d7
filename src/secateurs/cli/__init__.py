"""The command line: one verb per file; `main` is the entry point of the `secateurs` command."""

from __future__ import annotations

from secateurs.cli.app import main

__all__ = ["main"]
