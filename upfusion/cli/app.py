"""``upfusion VERB``: the verbs, and how their errors end."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Annotated

import typer

from upfusion import __version__
from upfusion.cli.console import console, print_error
from upfusion.cli.memory import keep_freed_memory
from upfusion.cli.missing import missing_package
from upfusion.cli.stopping import INTERRUPTED, stop_as_by_ctrl_c
from upfusion.runtime.errors import UPFusionError

# Verb -> "module:function", in the order that --help shows. The modules import heavy libraries inside the functions.
VERBS = {
    "demo": "upfusion.cli.demo:demo",
    "doctor": "upfusion.cli.doctor:doctor",
    "fuse": "upfusion.cli.fuse:fuse",
    "text": "upfusion.cli.text:text",
    "convert": "upfusion.cli.convert:convert",
    "calibrate": "upfusion.cli.calibrate:calibrate",
    "export": "upfusion.cli.export:export",
    "inspect": "upfusion.cli.inspect:inspect",
    "build": "upfusion.cli.build:build",
    "verify": "upfusion.cli.verify:verify",
    "accept": "upfusion.cli.accept:accept",
    "bench": "upfusion.cli.bench:bench",
    "eval": "upfusion.cli.eval:evaluate_command",
    "train": "upfusion.cli.train:train",
}
GROUPS = {"data": "upfusion.cli.data:app"}

app = typer.Typer(
    name="upfusion",
    help="Put a text-guided image-fusion network (UP-Fusion) on an NVIDIA GPU: "
    "checkpoint → verified ONNX → FP16 TensorRT engine → fused images.",
    epilog="Start with: upfusion demo -o demo   |   upfusion doctor",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _target(reference: str) -> object:
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


for _verb, _reference in VERBS.items():
    app.command(_verb)(_target(_reference))  # type: ignore[type-var]
for _group, _reference in GROUPS.items():
    app.add_typer(_target(_reference), name=_group)  # type: ignore[arg-type]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"upfusion {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens behind each step.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    from rich.logging import RichHandler

    handler = RichHandler(console=console, show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("upfusion").setLevel(logging.INFO if verbose else logging.WARNING)


def main() -> None:
    """Run the command line; errors of our family, and a missing package, end with exit code 2 and no traceback."""
    keep_freed_memory()
    # OpenCV's own lines: what matters in them is said by our errors.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    stop_as_by_ctrl_c()
    try:
        app()
    except UPFusionError as error:
        print_error(error)
        sys.exit(2)
    except ImportError as error:
        verb = next((word for word in sys.argv[1:] if word in VERBS or word in GROUPS), "")
        missing = missing_package(error, verb)
        if missing is None:
            raise
        print_error(missing)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("stopped")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
