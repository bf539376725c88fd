"""``upfusion build``: an ONNX graph as a TensorRT or TensorRT-RTX engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from upfusion.cli.console import check_line, console, fraction_bar, print_json, wrote

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
        float | None, typer.Option(metavar="GB", help="Scratch memory that a layer may use.", show_default=False)
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="0 (fast build) to 5 (slow build); tensorrt only.", show_default=False)
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the builder's own log.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the engines' manifests as JSON on stdout.")] = False,
) -> None:
    """Build an engine from an exported graph.

    The precision is the graph's: choose it at upfusion export. TensorRT measures kernels on the GPU here, so build
    where the engine will run. TensorRT-RTX builds anywhere for the GPUs that --target names, all of them in one
    engine, and finishes on the user's GPU at the first load. The engine holds the builder's bytes alone; what it was
    made of is in the manifest beside it. A failed or stopped build leaves no file.

    Examples:

      upfusion build fusion.onnx -o fusion.engine

      upfusion build fusion.onnx -o fusion.engine --builder tensorrt-rtx --target sm86,sm89

      upfusion build fusion.onnx -o fusion.{target}.engine --target sm86,sm89
    """
    import dataclasses
    import logging

    from upfusion.export.builder import BuildOptions, choose_builder, installed_gpus
    from upfusion.export.builder.options import engines_from_pattern, targets_from_text

    options = BuildOptions(
        builder=builder,
        targets=targets_from_text(target),
        timing_cache=timing_cache,
        workspace_bytes=None if workspace is None else round(workspace * 1e9),
        optimization_level=optimization_level,
        verbose=verbose,
    )
    if verbose:
        logging.getLogger("upfusion").setLevel(logging.INFO)
    choice = choose_builder(options, installed_gpus())
    check_line(True, "builder", f"{choice.builder} ({choice.reason})")
    options = dataclasses.replace(options, builder=choice.builder)
    manifests = []
    for path, one in engines_from_pattern(output, options):
        manifests.append(_built(graph, path, one))
        _report(manifests[-1])
        wrote(f"{path} ({path.stat().st_size / 1e6:.1f} MB) and {path.name}.json")
    console.print(f"next, on the GPU: upfusion accept {path} --data VISIBLE INFRARED", markup=False, soft_wrap=True)
    if json:
        print_json({"engines": [dataclasses.asdict(manifest) for manifest in manifests]})


def _built(graph: Path, path: Path, options: BuildOptions) -> Manifest:
    """Build one engine under a bar; a stopped build says so."""
    from upfusion.export.builder import engine_from_onnx

    with fraction_bar() as bar:
        task = bar.add_task("starting the builder", total=1.0)

        def show(phase: str, done: float) -> None:
            bar.update(task, description=phase, completed=done)

        try:
            return engine_from_onnx(graph, path, options, show)
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
    console.print(f"  executed on a GPU: {'yes' if record.executed_on_gpu else 'no'}")
