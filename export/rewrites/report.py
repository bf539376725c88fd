"""What a rewrite did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RewriteReport:
    """The outcome of one rewrite on one network."""

    name: str
    rewritten: int
    """Places that were changed."""
    skipped: tuple[str, ...] = ()
    """A sentence per place, or kind of place, that was left as it is."""
