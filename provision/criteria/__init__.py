"""Thresholds as data: TOML files with unit, scope, reason and source, their loader and their linter."""

from provision.criteria.linter import lint
from provision.criteria.loader import Criteria, load, load_files
from provision.criteria.model import CriteriaFile, Criterion, Expectation, Fraction

__all__ = ["Criteria", "CriteriaFile", "Criterion", "Expectation", "Fraction", "lint", "load", "load_files"]
