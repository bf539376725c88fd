"""From the deploy form to an ONNX file that was checked, run, and compared with PyTorch."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import logging
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upfusion import __version__
from upfusion.checkpoint import Checkpoint
from upfusion.export.accuracy.half_graph import emulate_half
from upfusion.export.deploy import DeployNetwork, fix_text
from upfusion.export.dither import MOST_ROWS, SIDE
from upfusion.export.frozen_ranking import NEEDS_DECISIONS, Constants, freeze_ranking, frozen_decisions, price
from upfusion.export.given_ranking import decision_specs, take_decisions
from upfusion.export.image_edges import (
    PLANE,
    Channels,
    Color,
    ImageEdges,
    host_planes,
    image_contract,
    images_of,
    largest_edge_error,
)
from upfusion.export.precision import check_calibration, fold_scales, samples_of, to_half
from upfusion.export.recolouring import with_recoloured
from upfusion.export.rewrites import DEFAULTS, Target, apply_rewrites
from upfusion.export.simplify import simplify
from upfusion.model.decisions import decision_points, imposing, recording
from upfusion.model.network import SIZE_MULTIPLE
from upfusion.runtime.calibration_file import SAMPLE_SIZE, Calibration, read_calibration
from upfusion.runtime.errors import ExportError, InputError
from upfusion.runtime.images import padded_size
from upfusion.runtime.manifest import (
    METADATA_KEY,
    Contract,
    Manifest,
    Precision,
    SizeRange,
    Source,
    TensorSpec,
    TextRecord,
    replacing_artifact,
)
from upfusion.text import TextFeatures

log = logging.getLogger(__name__)

OPSET = 20
DYNAMIC_SIZES = SizeRange(minimum=(64, 64), optimum=(480, 640), maximum=(1024, 1280))
"""Sizes of ``--dynamic`` without further words."""

MAX_LIMITS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-1}
MEAN_LIMITS: dict[Precision, float] = {"fp32": 2e-4, "fp16": 1e-2}
"""Largest and mean difference to PyTorch in float32 (image range 0..1) of a good export.

Both sides compute with the graph's decisions, so these are limits on arithmetic alone. fp32: a quarter of an 8-bit
level, and a twentieth on average; the base network exported without rewrites reaches 7e-4 and 1.5e-4 at 480x640,
because ONNX Runtime loses so much in its long sums, and ours a hundredth of it. fp16: rounding everything costs up to
44.6 dB (0.6 % RMS) at 480x640.
"""

EDGE_LIMIT = 1
"""Levels by which the image edges may differ from the host's: 0 wherever single operations round as IEEE 754 says."""

SIDES = ("height", "width")
"""How tensors name the sides that vary."""

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What the graph shall be."""

    precision: Precision = "fp32"
    sizes: SizeRange = DYNAMIC_SIZES
    """Image sizes; they are padded up to a multiple of 8."""
    batch: int = 1
    io: Literal["tensor", "image"] = "tensor"
    """Padded float planes, or uint8 images with everything that they need inside the graph."""
    channels: Channels = "rgb"
    """Image graphs: order of the colour channels."""
    color: Color = "ycbcr"
    """Image graphs: what they return."""
    target: Target = "tensorrt"
    """What the rewrites were chosen for, for the manifest."""
    rewrites: tuple[str, ...] = DEFAULTS["tensorrt"]
    """Names of the rewrites to apply (``upfusion.export.rewrites``); none gives the network as it was trained."""
    expose_ranks: bool = False
    """Add the decisions (names: ``upfusion.model.decisions``) as outputs."""
    calibration: Path | None = None
    """What ``upfusion calibrate`` wrote; half precision and frozen ranking follow it."""
    ranking: Literal["dynamic", "frozen", "given"] = "dynamic"
    """``frozen``: the calibration's majority decisions are constants of the graph; ``given``: decisions are inputs."""

    def __post_init__(self) -> None:
        if self.ranking == "frozen" and self.calibration is None:
            raise InputError(
                "--ranking frozen needs the decisions of a calibration",
                "upfusion calibrate CHECKPOINT --data VIS IR -o calibration.json, then --calibration calibration.json",
            )
        if self.calibration is not None and self.precision == "fp32" and self.ranking != "frozen":
            raise InputError(
                f"a calibration changes nothing in an FP32 graph with {self.ranking} ranking",
                "add --precision fp16 or --ranking frozen, or leave --calibration out",
            )
        if self.expose_ranks and self.ranking == "given":
            raise InputError(
                "--expose-ranks shows what a graph decides, and with --ranking given it decides nothing",
                "leave --expose-ranks out; it belongs to the graph that ranks",
            )
        if self.batch < 1:
            raise InputError(f"batch {self.batch} makes no graph", "use --batch 1 or more")
        if self.precision == "fp16" and self.sizes.maximum[0] > MOST_ROWS * SIDE:
            raise InputError(
                f"an FP16 graph takes images of up to {MOST_ROWS * SIDE} rows, not {self.sizes.maximum[0]}",
                "give a smaller --size, or leave --precision at fp32",
            )
        low, best, high = self.sizes.minimum, self.sizes.optimum, self.sizes.maximum
        if min(low) < SIZE_MULTIPLE or any(not a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
            raise InputError(
                f"sizes {low}, {best}, {high} are no range of at least {SIZE_MULTIPLE} pixels",
                "give HEIGHTxWIDTH, or MIN:OPT:MAX such as 256x256:480x640:1024x1280",
            )


def padded(size: tuple[int, int]) -> tuple[int, int]:
    """Return a size rounded up to multiples of 8."""
    return padded_size(*size, SIZE_MULTIPLE)


def export_onnx(
    checkpoint: Checkpoint,
    path: str | Path,
    text: TextFeatures | None,
    options: ExportOptions,
    step: Step = log.info,
) -> Manifest:
    """Write the deploy form as ONNX, with its manifest inside and beside it.

    Args:
        checkpoint: the trained network.
        path: the ``.onnx`` file; replaced only when every check passed.
        text: the prompt's feature; None takes what the checkpoint carries.
        options: precision, sizes, batch.
        step: called with a sentence before each step.

    Raises:
        InputError: there is no text feature, or the options make no graph.
        ExportError: ONNX's checker, ONNX Runtime or the comparison with PyTorch refuses the graph.
    """
    path = Path(path)
    text = text or checkpoint.text
    if text is None:
        raise InputError(
            f"{checkpoint.path} carries no text feature, and the channel order depends on it",
            'make one with: upfusion text "PROMPT" -o text.npz, then pass --text text.npz',
        )
    contract = contract_of(options)
    step("making the deploy form")
    reference, fixed = fix_text(checkpoint.model, text)
    calibration = read_calibration(options.calibration) if options.calibration else None
    model, notes, record = checkpoint.model, [], {}
    if calibration is not None and options.calibration is not None:
        check_calibration(calibration, checkpoint, text, options.calibration.name)
        record = calibration.record(options.calibration)
        if options.precision == "fp16":
            model = copy.deepcopy(model)
            notes += fold_scales(model, calibration)
    deploy = fix_text(model, text)[0]
    frozen: Constants = {}
    names = options.rewrites
    if options.ranking == "frozen":
        assert calibration is not None
        step("measuring what frozen decisions cost")
        frozen = freeze_ranking(deploy, calibration)
        record["frozen"] = frozen
        record["frozen_price"] = price(reference, deploy, calibration)
        names = tuple(name for name in names if name not in NEEDS_DECISIONS)
    reports = apply_rewrites(deploy, names)
    for report in reports:
        log.info("%s: %d places%s", report.name, report.rewritten, "".join(f"; {near}" for near in report.skipped))
    if options.precision == "fp16":
        step("fitting half precision")
        notes += half_precision(deploy, calibration, contract)
    step("tracing the graph")
    graph = graph_of(
        ImageEdges(deploy, options.color, options.channels) if options.io == "image" else WithDecisions(deploy),
        contract,
        given=options.ranking == "given",
    )
    contract = with_decisions(contract, graph, deploy, options)
    step("checking the graph")
    check(graph)
    manifest = Manifest(
        kind="onnx",
        source=Source(
            name=checkpoint.path.name,
            sha256=checkpoint.sha256,
            preset=checkpoint.preset,
            config=checkpoint.model.config.to_dict(),
        ),
        text=TextRecord(
            prompt=text.prompt,
            encoder=text.encoder,
            permutations=fixed.permutations,
            smallest_gaps=fixed.smallest_gaps,
        ),
        precision=options.precision,
        contract=contract,
        opset=OPSET,
        versions=library_versions(),
        parity={},
        target=options.target,
        rewrites=tuple(report.name for report in reports if report.rewritten),
        notes=tuple(notes),
        ranking=options.ranking,
        calibration=record,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
    )
    with replacing_artifact(path) as (temporary, record_file):
        onnx.save(graph, temporary)
        step("comparing with PyTorch")
        parity = compare(reference, temporary, options.precision, contract, frozen_decisions(frozen))
        manifest = dataclasses.replace(manifest, parity=parity)
        hide_outputs(graph, contract, options)
        entry = graph.metadata_props.add()
        entry.key, entry.value = METADATA_KEY, manifest.to_json()
        onnx.save(graph, temporary)
        manifest.write_as(record_file, temporary)
    return manifest


def half_precision(deploy: DeployNetwork, calibration: Calibration | None, contract: Contract) -> list[str]:
    """Turn the deploy form to half, in place; return sentences for the manifest."""
    if calibration is None:
        report = to_half(deploy, synthetic_crop(contract), calibrated=False)
        notes = [
            "half precision without a calibration: ranges come from one synthetic pair, and weights are rounded to "
            "nearest; calibrate on real pairs (upfusion calibrate)"
        ]
    else:
        report = to_half(deploy, with_recoloured(*samples_of(calibration)), calibrated=True)
        notes = [
            f"half precision follows the calibration: {report.corrected} convolutions are fitted to its crops, "
            "as they are and recoloured"
        ]
    notes.append("the encoders' streams are dithered by less than 2^-10, so that flat areas do not round as one")
    notes.append(f"{report.half} convolutions in half; the largest value of their maps was {report.largest:.4g}")
    if report.wide:
        notes.append("float32 where half has no room: " + ", ".join(report.wide))
    return notes


def synthetic_crop(contract: Contract) -> tuple[Tensor, Tensor]:
    """Return a corner of the synthetic pair that is small enough to be run at once."""
    height, width = (
        max(SIZE_MULTIPLE, min(side, most) // SIZE_MULTIPLE * SIZE_MULTIPLE)
        for side, most in zip(contract.sizes.optimum, SAMPLE_SIZE, strict=True)
    )
    visible, infrared = (torch.from_numpy(plane)[:1, :, :height, :width] for plane in synthetic_pair(contract))
    return visible, infrared


def contract_of(options: ExportOptions) -> Contract:
    """Return what the graph takes and gives for these options."""
    if options.io == "image":
        return image_contract(options.sizes, options.batch, options.color, options.channels)
    sizes = SizeRange(**{name: padded(getattr(options.sizes, name)) for name in ("minimum", "optimum", "maximum")})
    height, width = sizes.optimum if sizes.fixed else ("height", "width")

    def plane(name: str, channels: int, meaning: str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=(options.batch, channels, height, width), meaning=meaning)

    return Contract(
        io=options.io,
        inputs=(
            plane("visible", 3, "NCHW, RGB, 0..1, reflect-padded at bottom and right"),
            plane("infrared", 1, "NCHW, 0..1, reflect-padded at bottom and right"),
        ),
        outputs=(plane("fused", 1, "NCHW luma, mostly 0..1, not clamped, still padded"),),
        batch=options.batch,
        sizes=sizes,
        size_multiple=SIZE_MULTIPLE,
    )


def graph_of(view: WithDecisions | ImageEdges, contract: Contract, *, given: bool = False) -> onnx.ModelProto:
    """Trace the deploy form with torch's dynamo exporter; the decisions follow the images, as outputs or ``given``.

    Raises:
        ExportError: the exporter refuses the module.
    """
    best = dict(zip(SIDES, contract.sizes.optimum, strict=True))
    example = tuple(
        torch.zeros([best.get(str(side), side) for side in spec.shape], dtype=getattr(torch, spec.dtype))
        for spec in contract.inputs
    )
    dynamic = None
    if not contract.sizes.fixed:
        sides = {
            name: varying_side(name, contract.sizes.minimum[i], contract.sizes.maximum[i], contract.size_multiple)
            for i, name in enumerate(SIDES)
        }
        dynamic = tuple({spec.shape.index(name): side for name, side in sides.items()} for spec in contract.inputs)
    images = [spec.name for spec in contract.outputs] + ([PLANE] if contract.io == "image" else [])
    decisions = list(decision_points(view.deploy.network))
    try:
        with warnings.catch_warnings():
            # Both images name their sides alike, which the exporter finds worth a warning for each side.
            warnings.filterwarnings("ignore", "# The axis name: .* shares the same shape constraints", UserWarning)
            program = torch.onnx.export(
                view.eval(),
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in contract.inputs],
                output_names=images + decisions,
                dynamic_shapes=dynamic,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # torch has no family for export failures
        raise ExportError(f"torch could not export the network: {error}", "report this with the versions") from error
    if program is None:
        raise ExportError("torch's exporter returned nothing", "report this with the versions")
    if given:
        take_decisions(program.model, decisions)
    simplify(program.model)
    for output, spec in zip(program.model.graph.outputs, contract.outputs, strict=False):
        output.shape = ir.Shape(spec.shape)  # the exporter's name for a side is the formula that it worked out
    return program.model_proto


def with_decisions(
    contract: Contract, graph: onnx.ModelProto, deploy: DeployNetwork, options: ExportOptions
) -> Contract:
    """Return the contract with the decisions that the graph takes, or that it will show."""
    decisions = decision_specs(graph, decision_points(deploy.network))
    if options.ranking == "given":
        return dataclasses.replace(contract, decision_inputs=decisions)
    return dataclasses.replace(contract, decision_outputs=decisions if options.expose_ranks else ())


def varying_side(name: str, low: int, high: int, multiple: int) -> Any:
    """Return the exporter's description of a height or width between two lengths."""
    if multiple == 1:
        return torch.export.Dim(name, min=low, max=high)
    return torch.export.Dim(f"part_of_{name}", min=low // multiple, max=high // multiple) * multiple


def hide_outputs(graph: onnx.ModelProto, contract: Contract, options: ExportOptions) -> None:
    """Remove the outputs that only the comparison needed."""
    named = {spec.name for spec in contract.outputs}
    hidden = [
        output
        for output in graph.graph.output
        if output.name not in named and (output.name == PLANE or not options.expose_ranks)
    ]
    for output in hidden:
        graph.graph.output.remove(output)


class WithDecisions(nn.Module):
    """The deploy form as the exporter sees it: the image, then every decision."""

    def __init__(self, deploy: DeployNetwork) -> None:
        """Wrap the deploy form."""
        super().__init__()
        self.deploy = deploy

    def forward(self, visible: Tensor, infrared: Tensor) -> tuple[Tensor, ...]:
        """Return the fused image and the decisions in the order of the forward pass."""
        fused, decisions = self.deploy.with_decisions(visible, infrared)
        return fused, *(decisions[name] for name in decision_points(self.deploy.network))


def check(model: onnx.ModelProto) -> None:
    """Let ONNX check the graph, with strict shape inference.

    Raises:
        ExportError: the graph is not valid ONNX.
    """
    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid: {error}", "report this with the versions") from error


def compare(
    reference: DeployNetwork,
    path: Path,
    precision: Precision,
    contract: Contract,
    frozen: Mapping[str, Tensor],
) -> dict[str, float]:
    """Run the file in ONNX Runtime beside the float32 deploy form in PyTorch and return the differences.

    A half graph runs with every edge rounded (``export.accuracy.half_graph``), which ONNX Runtime alone does not do.

    The reference computes with the graph's decisions, so that ``max_difference`` and ``mean_difference`` are
    arithmetic alone; ``decisions_moved`` is the share of ranks and mask entries that the reference decides otherwise
    at the same point, after the same decisions before it. A graph that takes decisions gets the reference's own, and
    has no ``decisions_moved``.

    Raises:
        ExportError: ONNX Runtime cannot run it, or the differences pass the limits.
    """
    planes = synthetic_pair(contract)
    inputs: tuple[NDArray[Any], ...] = planes
    if contract.io == "image":
        visible, infrared = images_of(planes[0], planes[1], contract.sizes.optimum)
        inputs, planes = (visible, infrared), host_planes(visible, infrared, contract)
    tensors = tuple(map(torch.from_numpy, planes))
    feed = {spec.name: value for spec, value in zip(contract.inputs, inputs, strict=True)}
    if contract.decision_inputs:
        with torch.no_grad():
            plane, given = reference.with_decisions(*tensors)
        feed |= {spec.name: given[spec.name].numpy() for spec in contract.decision_inputs}
    try:
        graph = onnx.load(path)
        names = [output.name for output in graph.graph.output]
        if precision == "fp16":
            graph = emulate_half(graph, ranges=False).model
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        got = dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise ExportError(f"ONNX Runtime cannot run the exported graph: {error}", "report this") from error
    images = {spec.name: got.pop(spec.name) for spec in contract.outputs}
    fused = got.pop(PLANE) if contract.io == "image" else images[contract.outputs[0].name]
    parity: dict[str, float] = {}
    if not contract.decision_inputs:
        decided = {name: value.expand(contract.batch, *value.shape[1:]) for name, value in frozen.items()}
        decided |= {name: torch.from_numpy(value) for name, value in got.items()}
        # The recorder comes first, so it sees what the network would have decided, given the graph's decisions before.
        with torch.no_grad(), recording(reference.network) as own, imposing(reference.network, decided):
            plane = reference(*tensors)
        moved = sum(int((own[name] != value).sum()) for name, value in decided.items())
        parity["decisions_moved"] = moved / sum(own[name].numel() for name in decided)
    difference = np.abs(fused.astype(np.float64) - plane.numpy())
    parity |= {"max_difference": float(difference.max()), "mean_difference": float(difference.mean())}
    if contract.io == "image":
        parity["edge_levels"] = largest_edge_error(images, fused, inputs[0], contract)
        if parity["edge_levels"] > EDGE_LIMIT:
            raise ExportError(
                f"the graph's uint8 images differ by {parity['edge_levels']:.0f} levels from the host's on the same "
                "plane",
                "export with --io tensor, and report this with the versions",
            )
    largest, mean = MAX_LIMITS[precision], MEAN_LIMITS[precision]
    if not (parity["max_difference"] <= largest and parity["mean_difference"] <= mean):
        raise ExportError(
            f"the exported graph is not the network: largest difference {parity['max_difference']:.2e} "
            f"(limit {largest:.0e}), mean {parity['mean_difference']:.2e} (limit {mean:.0e})",
            "export with --precision fp32; if that fails too, report it with the versions",
        )
    return parity


def synthetic_pair(contract: Contract) -> tuple[NDArray[np.float32], ...]:
    """Return smooth random planes, (B, 3, H, W) and (B, 1, H, W) in 0..1, of the contract's best size, padded.

    Noise would be no image, flat planes would rank nothing.
    """
    height, width = padded(contract.sizes.optimum)
    generator = np.random.Generator(np.random.PCG64(7))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = []
    for channels in (3, 1):
        image = np.zeros((contract.batch, channels, height, width), np.float32)
        for plane in image.reshape(-1, height, width):
            for wave in generator.uniform(-1, 1, (8, 3)):
                plane += np.cos(0.2 * (wave[0] * rows + wave[1] * columns) + 6 * wave[2])
        image -= image.min()
        planes.append(image / image.max())
    return tuple(planes)


def library_versions() -> dict[str, str]:
    """Return the versions that the graph depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
