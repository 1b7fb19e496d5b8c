"""Thresholds as data: TOML files with unit, scope, reason and source, their loader and their linter."""
