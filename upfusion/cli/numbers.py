"""Numbers as they are typed (Python reads ``nan`` as one, and no option means it) and as they are shown."""

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


def decibels(psnr_db: float | None) -> str:
    """Return a PSNR for people; None and infinity stand for equal images."""
    return "equal" if psnr_db is None or math.isinf(psnr_db) else f"{psnr_db:.2f} dB"
