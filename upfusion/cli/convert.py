"""``upfusion convert``: the authors' checkpoint as a safetensors file that explains itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upfusion.cli.console import check_line, print_json, spinner, wrote


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="The authors' .pth file (or one of ours, to change its text).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    text: Annotated[
        Path | None, typer.Option(help="Text feature to store in it (upfusion text).", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Turn the authors' checkpoint into a safetensors file with its configuration, text and provenance inside.

    Every tensor is accounted for: missing, foreign or non-finite ones are an error that lists them; the authors'
    files hold 264 tensors that the network never uses, which are left out.
    """
    from upfusion.checkpoint import load_checkpoint, save_checkpoint
    from upfusion.runtime.files import check_output
    from upfusion.text import load_text

    check_output(output, (".safetensors",))
    features = load_text(text) if text else None
    with spinner() as bar:
        bar.add_task(f"reading {checkpoint}")
        loaded = load_checkpoint(checkpoint)
        provenance = {"converted_from": {"name": checkpoint.name, "sha256": loaded.sha256}, **loaded.provenance}
        save_checkpoint(loaded.model, output, text=features or loaded.text, provenance=provenance)
    values = sum(parameter.numel() for parameter in loaded.model.parameters())
    check_line(True, "network", f"{loaded.preset}, {values:,} values")
    wrote(output, next_command=f"upfusion export {output} -o fusion.onnx")
    if json:
        print_json({"output": str(output), "preset": loaded.preset, "values": values, "sha256": loaded.sha256})
