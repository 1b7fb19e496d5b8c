"""The operator's side: reads the inventory, runs plays and validators on hosts, judges, reports."""

__version__ = "0.1.0"
