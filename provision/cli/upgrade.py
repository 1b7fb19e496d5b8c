"""The commands for a fleet's driver: upgrade, resume, rollback."""

from __future__ import annotations

import typer

app = typer.Typer()
