"""The decisions that the network takes per image, by name: read them, or impose others.

The network first decides (which channels in which order, which attention entries stay), then computes. Each
decision passes through an ``nn.Identity``, so hooks can record or replace it, in the trained network and in every
form that keeps those points.

Names: ``scpm.order`` (B, k) and ``tcpm1.order`` .. ``tcpm4.order`` (B, C), channel indices, best first;
``tcpm1.keep`` .. ``tcpm4.keep`` (B, heads, c, c), True where an attention logit stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

Hook = Callable[[nn.Module, Any, Tensor], Tensor | None]


def decision_points(network: nn.Module) -> dict[str, nn.Module]:
    """Return the identities that each decision passes through, by name, in the order of the forward pass.

    A form whose decisions are constants has no ``order`` in its modules, and no points.
    """
    points: dict[str, nn.Module] = {}
    if hasattr(network.pruning, "order"):
        points["scpm.order"] = network.pruning.order  # type: ignore[union-attr, assignment]
    for level, perturb in enumerate(network.perturbations, start=1):  # type: ignore[arg-type]
        if hasattr(perturb, "order"):
            points[f"tcpm{level}.order"] = perturb.order
            points[f"tcpm{level}.keep"] = perturb.attention.keep
    return points


@contextlib.contextmanager
def record_outputs(points: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that each forward pass inside the block fills with the outputs of the named modules."""
    seen: dict[str, Tensor] = {}

    def recorder(name: str) -> Hook:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            seen[name] = output

        return hook

    handles = [point.register_forward_hook(recorder(name)) for name, point in points.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def recording(network: nn.Module) -> contextlib.AbstractContextManager[dict[str, Tensor]]:
    """Return a context that yields a dictionary which each forward pass fills with the decisions taken."""
    return record_outputs(decision_points(network))


@contextlib.contextmanager
def imposing(network: nn.Module, decisions: Mapping[str, Tensor]) -> Iterator[None]:
    """Make the network compute with the given decisions inside the block, whatever it would decide itself.

    Decisions that are not named stay the network's own.
    """

    def replacement(decision: Tensor) -> Hook:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            return decision.to(output.dtype)

        return hook

    points = decision_points(network)
    handles = [points[name].register_forward_hook(replacement(value)) for name, value in decisions.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
