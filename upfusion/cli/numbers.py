"""Numbers as they are typed: Python reads ``nan`` as one, and no option means it."""

from __future__ import annotations

import math

import typer


def not_nan(value: float | None) -> float | None:
    """Return the value of an option; a typer callback.

    Raises:
        typer.BadParameter: it is not a number.
    """
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


def positive(value: float | None) -> float | None:
    """Return the value of an option; a typer callback.

    Raises:
        typer.BadParameter: it is not a finite number above 0.
    """
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter(f"{value:g} is not a number above 0")
    return value
