"""One fraction out of the library's tree of phases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class PhaseTree:
    """Follows phases that start within a step of another phase, and says how far the whole is.

    A phase of n steps, k of them done, is ``(k + inner) / n`` complete, where ``inner`` is the completion of the
    phases that run within its current step. Not thread-safe.
    """

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Note a new phase; ``parent`` is the phase in whose step it runs."""
        self._phases[name] = _Phase(parent, max(1, steps))

    def step(self, name: str, step: int) -> None:
        """Note that step ``step`` (from 0) of a phase is done."""
        if phase := self._phases.get(name):
            phase.done = min(step + 1, phase.steps)

    def finish(self, name: str) -> None:
        """Note the end of a phase, which can come before its last step."""
        phase = self._phases.pop(name, None)
        if phase is not None and phase.parent is None:
            self._fraction = 1.0

    def fraction(self) -> float:
        """Return 0..1 for the outermost phase; it never falls, though phases come and go."""
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        if roots:
            self._fraction = max(self._fraction, self._completion(roots[0]))
        return self._fraction

    def _completion(self, name: str) -> float:
        phase = self._phases[name]
        inner = [self._completion(child) for child, other in self._phases.items() if other.parent == name]
        mean = sum(inner) / len(inner) if inner else 0.0
        return min(1.0, (phase.done + mean) / phase.steps)
