"""``upfusion build``: an ONNX graph as a TensorRT or TensorRT-RTX engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from upfusion.cli.accept import REJECTED_CODE
from upfusion.cli.console import check_line, console, fraction_bar, print_json, wrote
from upfusion.cli.numbers import not_nan, positive

if TYPE_CHECKING:
    from upfusion.export.builder import BuildOptions
    from upfusion.runtime.manifest import Manifest


def build(
    graph: Annotated[Path, typer.Argument(metavar="GRAPH", help="The .onnx file that upfusion export wrote.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The engine to write; with {target} in its name, one engine for each target."
        ),
    ],
    builder: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx"],
        typer.Option(help="auto: tensorrt on the GPU that runs the engine, else tensorrt-rtx, which needs no GPU."),
    ] = "auto",
    target: Annotated[
        str | None,
        typer.Option(
            help="GPUs to build for, such as sm86,sm89 (tensorrt-rtx only); default: all since Ampere.",
            show_default=False,
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="Measurements to start from and to add to (tensorrt only).", show_default=False),
    ] = None,
    workspace: Annotated[
        float | None,
        typer.Option(metavar="GB", callback=positive, help="Scratch memory that a layer may use.", show_default=False),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="0 (fast build) to 5 (slow build); tensorrt only.", show_default=False)
    ] = None,
    aux_streams: Annotated[
        int, typer.Option(help="Streams beside the main one; more may be faster on small images and cost memory.")
    ] = 0,
    accept: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="VIS IR",
            help="Judge the engine on these pairs at once (upfusion accept); without a pass there is no engine.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="With --accept: FP32 graph or checkpoint; default: the one beside the graph.", show_default=False
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="With --accept: text feature, if the reference is a checkpoint.", show_default=False),
    ] = None,
    psnr: Annotated[
        float, typer.Option(callback=not_nan, help="With --accept: what every pair must reach, in dB.")
    ] = 50.0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the builder's own log.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the engines' manifests as JSON on stdout.")] = False,
) -> None:
    """Build an engine from an exported graph.

    The precision is the graph's: choose it at upfusion export. TensorRT measures kernels on the GPU here, so build
    where the engine will run. TensorRT-RTX builds anywhere for the GPUs that --target names, all of them in one
    engine, and finishes on the user's GPU at the first load. The engine holds the builder's bytes alone; what it was
    made of is in the manifest beside it. A failed or stopped build leaves no file, and a rejected one (--accept) keeps
    the plan as OUTPUT.rejected with its report.

    Examples:

      upfusion build fusion.onnx -o fusion.engine

      upfusion build fusion.onnx -o fusion.engine --builder tensorrt-rtx --target sm86,sm89

      upfusion build fusion.onnx -o fusion.{target}.engine --target sm86,sm89
    """
    import dataclasses
    import logging

    from upfusion.export.builder import BuildOptions, choose_builder, installed_gpus
    from upfusion.export.builder.options import engines_from_pattern, targets_from_text
    from upfusion.runtime.artifact import ENGINE_SUFFIXES
    from upfusion.runtime.files import check_output

    options = BuildOptions(
        builder=builder,
        targets=targets_from_text(target),
        timing_cache=timing_cache,
        workspace_bytes=None if workspace is None else round(workspace * 1e9),
        optimization_level=optimization_level,
        aux_streams=aux_streams,
        verbose=verbose,
    )
    if verbose:
        logging.getLogger("upfusion").setLevel(logging.INFO)
    choice = choose_builder(options, installed_gpus())
    check_line(True, "builder", f"{choice.builder} ({choice.reason})")
    options = dataclasses.replace(options, builder=choice.builder)
    gate = _Gate(graph, accept, reference, text, psnr) if accept else None
    manifests = []
    engines = engines_from_pattern(output, options)
    for path, _ in engines:
        check_output(path, ENGINE_SUFFIXES)
    for path, one in engines:
        place, manifest = _built(graph, path, one, gate)
        manifests.append(manifest)
        _report(manifest)
        wrote(f"{place} ({place.stat().st_size / 1e6:.1f} MB) and {place.name}.json")
    if not gate:
        after = f"next, on the GPU: upfusion accept {path} --data VISIBLE INFRARED"
        if manifests[-1].contract.decision_inputs:
            after += " --reference CHECKPOINT"  # the graph itself decides nothing
        console.print(after, markup=False, soft_wrap=True)
    if json:
        print_json({"engines": [dataclasses.asdict(manifest) for manifest in manifests]})
    if gate and gate.rejections:
        raise typer.Exit(REJECTED_CODE)


class _Gate:
    """Judges engines as they are built; everything that can be wrong with its inputs is found before the first."""

    def __init__(
        self, graph: Path, data: tuple[Path, Path], reference: Path | None, text: Path | None, psnr: float
    ) -> None:
        from upfusion.export.gate import require_gpu
        from upfusion.export.reference import reference_for
        from upfusion.runtime.manifest import read_manifest
        from upfusion.runtime.pairs import find_pairs

        require_gpu()
        self._pairs = find_pairs(*data)
        manifest = read_manifest(graph)
        if reference is None and manifest.precision == "fp32" and not manifest.contract.decision_inputs:
            reference = graph
        self._reference = reference_for(graph, manifest, reference)
        self._text, self._psnr = text, psnr
        self.rejections = 0

    def judge(self, plan: Path, name: str) -> Manifest:
        """Judge a plan that is to become ``name``, write the verdict into its manifest, and return that."""
        from upfusion.cli.accept import judged, show, verdict_line
        from upfusion.export.acceptance import record_acceptance

        report = judged(
            plan,
            self._pairs,
            reference=self._reference,
            psnr=self._psnr,
            with_metrics=False,
            device="auto",
            text=self._text,
        )
        show(report)
        verdict_line(name, report)
        self.rejections += bool(report.reasons)
        return record_acceptance(plan, report)


def _built(graph: Path, path: Path, options: BuildOptions, gate: _Gate | None) -> tuple[Path, Manifest]:
    """Build one engine under a bar, and let the gate judge it; a stopped build says so."""
    from upfusion.export.builder import engine_from_onnx
    from upfusion.export.gate import accepted_engine_from_onnx

    with fraction_bar() as bar:
        task = bar.add_task("starting the builder", total=1.0)

        def show(phase: str, done: float) -> None:
            bar.update(task, description=phase, completed=done)

        def judge(plan: Path) -> Manifest:
            bar.stop()  # the comparison has its own
            assert gate is not None
            return gate.judge(plan, path.name)

        try:
            if gate is None:
                return path, engine_from_onnx(graph, path, options, show)
            return accepted_engine_from_onnx(graph, path, options, judge, show)
        except KeyboardInterrupt:
            console.print(f"{path} was not written", markup=False, soft_wrap=True)
            raise


def _report(manifest: Manifest) -> None:
    """Print what a build took and what the engine will need."""
    record = manifest.build
    assert record is not None
    check_line(
        True,
        "build",
        f"{record.builder} {record.version} for {', '.join(record.targets)}, {manifest.precision}, "
        f"in {record.seconds:.0f} s and {record.peak_memory_bytes / 1e9:.1f} GB",
    )
    check_line(
        True,
        "memory",
        f"activations {record.activation_memory_bytes / 1e6:.0f} MB, weights {record.weights_bytes / 1e6:.0f} MB on "
        "the GPU, as the builder reports them",
    )
    if record.bytes_moved:
        check_line(True, "traffic", f"{record.bytes_moved / 1e9:.2f} GB are read and written by its layers in one run")
    console.print(f"  executed on a GPU: {'yes' if record.executed_on_gpu else 'no'}")
