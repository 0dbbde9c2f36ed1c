"""Marks of parameters."""

from typing import Any

import pytest


def thorough(*values: Any) -> Any:
    """Marks values of a parameter that only the thorough tests try."""
    return pytest.param(*values, marks=pytest.mark.thorough)
