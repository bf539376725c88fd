"""uint8 images in, uint8 image out: everything that a caller would do to them, as nodes of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upfusion.export.deploy import DeployNetwork
from upfusion.model.decisions import decision_points
from upfusion.model.network import LUMA_WEIGHTS, SIZE_MULTIPLE
from upfusion.runtime.images import finish, merge_chroma, prepare
from upfusion.runtime.manifest import LUMA_OUTPUT, Contract, SizeRange, TensorSpec

Channels = Literal["rgb", "bgr"]
"""Order of the colour channels in the visible image and in the result."""
Color = Literal["gray", "ycbcr"]
"""The fused luma alone, or with the visible image's chroma."""

PLANE = "fused_plane"
"""The network's own output, which the export compares; no output of the finished graph."""
LEVELS = 255.0


class ImageEdges(nn.Module):
    """The deploy form with scaling, luma, padding, crop, clamp, rounding and chroma around it.

    Each step is the one of ``upfusion.runtime.images``, in the same order and in float32, so that both paths agree to
    the bit around the network. Engines take and give uint8 through a cast alone, so casts come first and last.
    """

    def __init__(self, deploy: DeployNetwork, color: Color, channels: Channels) -> None:
        """Wrap the deploy form."""
        super().__init__()
        self.deploy = deploy
        self.color = color
        self.weights = LUMA_WEIGHTS if channels == "rgb" else LUMA_WEIGHTS[::-1]

    def forward(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, ...]:
        """Return the image, with chroma also its luma, then the network's plane, then the decisions in order.

        Args:
            visible: (B, H, W, 3) uint8.
            infrared: (B, H, W) uint8.

        Returns:
            ``fused`` (B, H, W) uint8, or (B, H, W, 3) and ``luma`` (B, H, W); float (B, 1, padded H, padded W).
        """
        height, width = infrared.shape[1:]
        levels = visible.float().permute(0, 3, 1, 2)  # (B, 3, H, W)
        first = self._luma(levels / LEVELS)
        second = infrared.float().unsqueeze(1) / LEVELS
        plane, decisions = self.deploy.with_decisions(reflect_padded(first), reflect_padded(second))
        luma = (plane[:, :, :height, :width].clamp(0.0, 1.0) * LEVELS).round()  # half to even
        images: tuple[Tensor, ...] = (luma.squeeze(1).to(torch.uint8),)
        if self.color == "ycbcr":
            # Cb and Cr stay, so R, G and B all move by what the luma moves.
            coloured = (levels + (luma - self._luma(levels))).round().clamp(0.0, LEVELS)
            images = (coloured.permute(0, 2, 3, 1).to(torch.uint8), *images)
        return *images, plane, *(decisions[name] for name in decision_points(self.deploy.network))

    def _luma(self, image: Tensor) -> Tensor:
        """Return (B, 1, H, W) luma of (B, 3, H, W), summed in the order R, G, B as the network does."""
        parts = [image[:, i : i + 1] * weight for i, weight in enumerate(self.weights)]
        red, green, blue = parts if self.weights == LUMA_WEIGHTS else parts[::-1]
        return red + green + blue


def reflect_padded(plane: Tensor) -> Tensor:
    """Pad (B, 1, H, W) at the bottom and the right to multiples of 8 by reflection, the edge not repeated."""
    # Only positive numbers are divided here: ONNX divides towards zero, Python towards minus infinity.
    missing = [(side + SIZE_MULTIPLE - 1) // SIZE_MULTIPLE * SIZE_MULTIPLE - side for side in plane.shape[2:]]
    return nn.functional.pad(plane, (0, missing[1], 0, missing[0]), mode="reflect")


def image_contract(sizes: SizeRange, batch: int, color: Color, channels: Channels) -> Contract:
    """Return what a graph with these edges takes and gives."""
    height, width = sizes.optimum if sizes.fixed else ("height", "width")
    order = channels.upper()

    def image(name: str, meaning: str, *ends: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="uint8", shape=(batch, height, width, *ends), meaning=meaning)

    outputs: tuple[TensorSpec, ...] = (image("fused", "NHW, fused luma"),)
    if color == "ycbcr":
        outputs = (
            image("fused", f"NHWC, {order}, fused luma with the visible image's chroma", 3),
            image(LUMA_OUTPUT, "NHW, fused luma"),
        )
    return Contract(
        io="image",
        inputs=(
            image("visible", f"NHWC, {order}, 0..255, not padded", 3),
            image("infrared", "NHW, 0..255, not padded"),
        ),
        outputs=outputs,
        batch=batch,
        sizes=sizes,
        size_multiple=1,
    )


def images_of(
    visible: NDArray[np.float32], infrared: NDArray[np.float32], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return (B, H, W, 3) and (B, H, W) uint8 images of ``size`` from planes in 0..1 that are at least as large."""
    height, width = size
    first, second = (np.rint(planes[..., :height, :width] * LEVELS).astype(np.uint8) for planes in (visible, infrared))
    return np.ascontiguousarray(first.transpose(0, 2, 3, 1)), np.ascontiguousarray(second[:, 0])


def host_planes(
    visible: NDArray[np.uint8], infrared: NDArray[np.uint8], contract: Contract
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (B, 3, H, W) and (B, 1, H, W) padded planes in 0..1 as the host makes them from the graph's inputs."""
    pairs = [prepare(first, second) for first, second in zip(_rgb(visible, contract.channels), infrared, strict=True)]
    firsts, seconds = zip(*pairs, strict=True)
    return np.concatenate(firsts), np.concatenate(seconds)


def largest_edge_error(
    got: Mapping[str, NDArray[np.uint8]],
    plane: NDArray[np.float32],
    visible: NDArray[np.uint8],
    contract: Contract,
) -> int:
    """Return by how many levels the graph's images differ from what the host makes of the same plane.

    Args:
        got: the graph's image outputs by name.
        plane: (B, 1, padded H, padded W), the network's output in the same run.
        visible: (B, H, W, 3), the graph's input.
        contract: the graph's.
    """
    height, width = visible.shape[1:3]
    luma = [finish(image[0].copy(), height, width) for image in plane]
    wanted = {"fused": np.stack(luma)}
    if contract.color == "ycbcr":
        coloured = [merge_chroma(*pair) for pair in zip(_rgb(visible, contract.channels), luma, strict=True)]
        wanted = {"fused": _rgb(np.stack(coloured), contract.channels), LUMA_OUTPUT: wanted["fused"]}
    return max(int(np.abs(got[name].astype(np.int16) - image).max()) for name, image in wanted.items())


def _rgb(images: NDArray[np.uint8], channels: Channels) -> NDArray[np.uint8]:
    """Turn (B, H, W, 3) images of this order to RGB, or back."""
    return images if channels == "rgb" else np.ascontiguousarray(images[..., ::-1])
