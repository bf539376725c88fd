"""Run our network on golden cases, with every intermediate tensor under the golden files' name.

python ../shared/golden/compare.py --recipe all --adapter tests/golden/golden_adapter.py
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from upfusion.checkpoint import UNUSED, authors_key
from upfusion.config import ModelConfig
from upfusion.model import FusionNetwork

LEVELS = (1, 2, 3, 4)


def network_of(state_dict: dict[str, np.ndarray], config: dict) -> FusionNetwork:
    """Build the network that a golden recipe's tensors (authors' names) describe."""
    model = FusionNetwork(
        ModelConfig(
            dim=config["dim"],
            num_blocks=config["num_blocks"],
            num_refinement_blocks=config["num_refinement_blocks"],
            heads=config["heads"],
            ffn_expansion=config["ffn_expansion_factor"],
        )
    ).eval()
    left = {key for key in state_dict if not UNUSED.match(key)}
    filled = {}
    for name, tensor in model.state_dict().items():
        key = authors_key(name)
        left.remove(key)
        filled[name] = torch.from_numpy(state_dict[key]).reshape(tensor.shape)
    assert not left, left
    model.load_state_dict(filled, strict=True)
    return model.requires_grad_(False)


def watch(model: FusionNetwork) -> dict[str, torch.Tensor]:
    """Return a dictionary that each forward pass fills with the golden files' intermediate tensors."""
    seen: dict[str, torch.Tensor] = {}

    def keep(module: nn.Module, name: str, of_input: int | None = None) -> None:
        def hook(_: nn.Module, args: tuple, output: torch.Tensor) -> None:
            seen[name] = output if of_input is None else args[of_input]

        module.register_forward_hook(hook)

    keep(model.embed_visible, "embed.vis")
    keep(model.embed_infrared, "embed.ir")
    pruning = model.pruning
    keep(pruning.squeeze, "scpm.squeeze", of_input=0)
    keep(pruning.squeeze, "scpm.se")
    keep(pruning.to_rgb, "scpm.suo")
    keep(pruning.trunk.stages, "scpm.convnext_map")
    keep(pruning.trunk_head, "scpm.convnext_feat", of_input=0)
    keep(pruning.trunk_head, "scpm.convnext_logits")
    keep(pruning.score, "scpm.weights")
    keep(pruning.order, "scpm.indices")
    keep(pruning, "scpm.output")
    keep(model.expand, "expand")
    for golden, module in (("vis", model.modulate_visible), ("ir", model.modulate_infrared)):
        keep(module.affine, f"gam.{golden}.affine")
        keep(module, f"gam.{golden}")
    for level in LEVELS:
        keep(model.encoders_visible[level - 1], f"enc{level}.vis")
        keep(model.encoders_infrared[level - 1], f"enc{level}.ir")
        perturb, prefix = model.perturbations[level - 1], f"tcpm{level}."
        keep(perturb.squeeze, prefix + "squeeze", of_input=0)
        keep(perturb.score, prefix + "weights")
        keep(perturb.order, prefix + "indices")
        keep(perturb.text_logits, prefix + "text_logits")
        keep(perturb.permutation, prefix + "permutation")
        keep(perturb.mix, prefix + "mixed")
        keep(perturb.norm_query, prefix + "q", of_input=0)
        keep(perturb.norm_source, prefix + "kv", of_input=0)
        keep(perturb.attention.logits, prefix + "attn_logits")
        keep(perturb.attention.keep, prefix + "attn_keep")
        keep(perturb.attention, prefix + "att")
        keep(perturb, prefix + "output")
    for level in (1, 2, 3):
        keep(model.decoders[level - 1], f"dec{level}")
    keep(model.refinement, "refine")
    return seen


def load(state_dict: dict[str, np.ndarray], config: dict):
    """Answer the interface that ``compare.py`` asks of an adapter."""
    model = network_of(state_dict, config)
    seen = watch(model)

    def run(visible: np.ndarray, infrared: np.ndarray, text: np.ndarray) -> dict[str, np.ndarray]:
        output = model(*map(torch.from_numpy, (visible, infrared, text)))
        return {"output": output.numpy(), **{name: value.numpy() for name, value in seen.items()}}

    return run
