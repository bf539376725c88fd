"""``upfusion text``: encode a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upfusion.cli.console import spinner, wrote


def text(
    prompt: Annotated[
        str, typer.Argument(help="English text; the authors' prompt when left out.", show_default=False)
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz file to write.")] = Path("text.npz"),
    weights: Annotated[
        Path | None,
        typer.Option(help="OpenAI's ViT-B-32.pt, where open_clip cannot download it.", show_default=False),
    ] = None,
) -> None:
    """Encode a prompt with CLIP ViT-B/32 (open_clip, OpenAI weights) into a text feature.

    The feature fixes the channel order of four modules of the network; `export` bakes that order into the graph.
    Keep the file with the deployment: another machine's CLIP may order near ties differently.

    Example: upfusion text "Fuse the thermal targets into the visible scene." -o text.npz
    """
    from upfusion.runtime.files import check_output
    from upfusion.text import DEFAULT_PROMPT, encode_text

    check_output(output, (".npz",))
    with spinner() as bar:
        bar.add_task("encoding with CLIP ViT-B/32")
        features = encode_text(prompt or DEFAULT_PROMPT, weights)
    features.save(output)
    wrote(output, next_command=f"upfusion export CHECKPOINT --text {output} -o fusion.onnx")
