"""Marks of parameters."""

from typing import Any

import pytest


def thorough(*values: Any) -> Any:
    """Values of a test's parameters that only the thorough tests try."""
    return pytest.param(*values, marks=pytest.mark.thorough)
