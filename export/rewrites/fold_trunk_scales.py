"""The ConvNeXt trunk's norm scales and layer scales folded into its pointwise layers."""

from __future__ import annotations

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.fold_norm_scale import Standardize
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import conv_of


class FoldedTrunkBlock(nn.Module):
    """A ConvNeXt block whose pointwise layers are 1x1 convolutions that carry all scales."""

    def __init__(self, trained: ConvNeXtBlock) -> None:
        """Own the folded weights."""
        super().__init__()
        self.depthwise = trained.conv_dw
        self.norm = Standardize(trained.norm.eps)
        first, second = trained.mlp.fc1, trained.mlp.fc2
        scale, shift = trained.norm.weight.double(), trained.norm.bias.double()
        weight = first.weight.double()
        like = trained.conv_dw
        self.expand = conv_of(weight * scale, weight @ shift + first.bias.double(), like=like)
        self.act = trained.mlp.act
        gamma = trained.gamma.double()
        self.project = conv_of(gamma[:, None] * second.weight.double(), gamma * second.bias.double(), like=like)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x + self.project(self.act(self.expand(self.norm(self.depthwise(x)))))


def fold_trunk_scales(deploy: DeployNetwork) -> RewriteReport:
    """Fold each block's norm scale g and shift b into its first layer and its layer scale s into its second.

    ::

        s * (W2 gelu(W1 (g * z + b) + c1) + c2)  =  (diag(s) W2) gelu((W1 diag(g)) z + W1 b + c1) + s * c2

    Declines for blocks that change resolution or width, or have no layer scale.
    """
    done, skipped = 0, []
    trunk = deploy.network.pruning.trunk
    for name, parent in list(trunk.named_modules()):
        for child_name, child in list(parent.named_children()):
            if not isinstance(child, ConvNeXtBlock):
                continue
            keeps_shape = isinstance(child.shortcut, nn.Identity) and child.conv_dw.stride == (1, 1)
            if not keeps_shape or child.gamma is None or not isinstance(child.mlp.fc1, nn.Linear):
                skipped.append(f"{name}.{child_name} is not a plain block with a layer scale")
                continue
            with torch.no_grad():
                setattr(parent, child_name, FoldedTrunkBlock(child))
            done += 1
    return RewriteReport("fold_trunk_scales", done, tuple(skipped))
