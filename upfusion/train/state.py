"""A run's state on disk: everything that the next step depends on, in one file that is complete or absent."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upfusion.runtime.errors import CheckpointError
from upfusion.runtime.files import replacing

FILE = "state.pt"
SCHEMA = 1


@dataclass(slots=True, kw_only=True)
class RunState:
    """Weights, their average, the optimiser, and how far the run is."""

    network: nn.Module
    average: nn.Module | None
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    """Steps done."""
    best: float = float("-inf")
    """Best validation score so far."""

    def save(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Write the state beside what the run was started with."""
        record = {
            "schema": SCHEMA,
            "settings": dict(settings),
            "step": self.step,
            "best": self.best,
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        with replacing(folder / FILE) as temporary:
            torch.save(record, temporary)

    def load(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Continue where :meth:`save` stood.

        Raises:
            CheckpointError: the file is missing or damaged, or the run was started with other settings.
        """
        path = folder / FILE
        try:
            record = torch.load(path, map_location="cpu", weights_only=True)
            if record["schema"] != SCHEMA:
                raise ValueError(f"schema {record['schema']}, this version writes {SCHEMA}")
            saved = record["settings"]
        except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be resumed from: {str(error).splitlines()[0] if str(error) else error!r}",
                "start again in another folder",
            ) from error
        changed = [
            f"{name}: {saved.get(name)!r} then, {settings.get(name)!r} now"
            for name in sorted(saved.keys() | settings.keys())
            if saved.get(name) != settings.get(name)
        ]
        if changed:
            raise CheckpointError(
                f"{path} belongs to a run with other settings:\n  " + "\n  ".join(changed),
                "resume with the settings that the run was started with, or start again in another folder",
            )
        self.network.load_state_dict(record["network"])
        if self.average is not None:
            self.average.load_state_dict(record["average"])
        self.optimiser.load_state_dict(record["optimiser"])
        self.scaler.load_state_dict(record["scaler"])
        self.step, self.best = record["step"], record["best"]


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move the average of the weights towards the network's, faster in the first steps.

    ``step`` counts from 1; the decay is ``min(decay, (1 + step) / (20 + step))``.
    """
    decay = min(decay, (1 + step) / (20 + step))
    ours: list[Tensor] = list(average.parameters())
    torch._foreach_lerp_(ours, list(network.parameters()), 1 - decay)
