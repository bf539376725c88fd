"""Checkpoint files: the authors' ``.pth`` and our ``.safetensors``; every key is accounted for.

The authors' names appear only here. One function turns our name into theirs; the other direction is the same map
over the network's own names, read backwards.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from upfusion import __version__
from upfusion.config import ModelConfig, preset_name
from upfusion.model import FusionNetwork
from upfusion.runtime.errors import CheckpointError, InputError
from upfusion.runtime.files import replacing, sha256_of
from upfusion.text import TextFeatures

log = logging.getLogger(__name__)

AUTHORS_KEY = "AWF"
"""Top-level key of the authors' files."""
AUTHORS_PREFIX = "module."
"""What DistributedDataParallel puts before every name."""
METADATA_KEY = "upfusion"
TEXT_TENSOR = "text.features"
"""Name of the text feature's tensor in our files."""

UNUSED = re.compile(r"(encoder_level[123]|latent)_gt\.")
"""Tensors of the authors' files that the forward pass never touches."""

# Our name -> theirs, longest part first. Indices of module lists are level - 1.
_MODULES = {
    "embed_visible": "patch_embed.proj",
    "embed_infrared": "ir_imb.proj",
    "pruning": "channel_select",
    "expand": "expand_conv",
    "modulate_visible": "GEO_vi",
    "modulate_infrared": "GEO_ir",
    **{f"encoders_visible.{i}": f"encoder_level{i + 1}_vi" for i in range(3)},
    **{f"encoders_infrared.{i}": f"encoder_level{i + 1}_ir" for i in range(3)},
    "encoders_visible.3": "latent_vi",
    "encoders_infrared.3": "latent_ir",
    **{f"downs.{i}": f"down{i + 1}_{i + 2}" for i in range(3)},
    **{f"perturbations.{i}": f"encoder_shuffle_channel{i + 1}" for i in range(3)},
    "perturbations.3": "latent_shuffle_channel",
    **{f"ups.{i}": f"up{i + 2}_{i + 1}" for i in range(3)},
    **{f"reduces.{i}": f"reduce_chan_level{i + 2}" for i in range(2)},
    **{f"decoders.{i}": f"decoder_level{i + 1}" for i in range(3)},
    "refinement": "refinement",
    "output": "output",
}
_BLOCK_PARTS = {
    "norm_attention": "norm1.body",
    "norm_feed_forward": "norm2.body",
    "attention.temperature": "attn.temperature",
    "attention.to_qkv": "attn.qkv",
    "attention.depthwise": "attn.qkv_dwconv",
    "attention.project": "attn.project_out",
    "feed_forward.expand": "ffn.project_in",
    "feed_forward.depthwise": "ffn.dwconv",
    "feed_forward.project": "ffn.project_out",
}
_PERTURBATION_PARTS = {
    "squeeze": "se_fc",
    "text_layers": "text_fc",
    "mix": "conv1x1",
    "merge": "conv_out",
    "norm_query": "norm1.body",
    "norm_source": "norm2.body",
    "norm_feed_forward": "norm3.body",
    "attention.temperature": "select_attn.temperature",
    "attention.output_scale": "select_attn.attn4",
    "attention.to_query": "select_attn.q",
    "attention.query_depthwise": "select_attn.q_dwconv",
    "attention.to_key_value": "select_attn.kv",
    "attention.key_value_depthwise": "select_attn.kv_dwconv",
    "attention.project": "select_attn.project_out",
    "feed_forward.expand": "ffn.project_in",
    "feed_forward.depthwise": "ffn.dwconv",
    "feed_forward.project": "ffn.project_out",
}
_PRUNING_PARTS = {
    "squeeze": "fc",
    "to_rgb": "suo_conv",
    "trunk_head": "convnext_fc",
    "select": "expand_conv",
    "alpha": "alpha",
}
# timm's ConvNeXt -> torchvision's ``features``, wrapped once more by the authors ("0.").
_TRUNK_BLOCK_PARTS = {
    "gamma": "layer_scale",
    "conv_dw": "block.0",
    "norm": "block.2",
    "mlp.fc1": "block.3",
    "mlp.fc2": "block.5",
}


def _renamed(part: str, names: Mapping[str, str]) -> str:
    """Replace the longest leading name of ``part`` that the table knows."""
    for ours in sorted(names, key=len, reverse=True):
        if part == ours or part.startswith(ours + "."):
            return names[ours] + part[len(ours) :]
    raise KeyError(part)


def _authors_trunk(part: str) -> str:
    """Return torchvision's name of a tensor of timm's ConvNeXt."""
    if match := re.fullmatch(r"stem\.(.+)", part):
        return f"0.0.{match[1]}"
    if match := re.fullmatch(r"stages\.(\d)\.downsample\.(.+)", part):
        return f"0.{2 * int(match[1])}.{match[2]}"
    if match := re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.+)", part):
        return f"0.{2 * int(match[1]) + 1}.{match[2]}.{_renamed(match[3], _TRUNK_BLOCK_PARTS)}"
    raise KeyError(part)


def authors_key(ours: str) -> str:
    """Return the authors' name (without ``module.``) of a tensor of :class:`FusionNetwork`."""
    module = next(name for name in sorted(_MODULES, key=len, reverse=True) if ours.startswith(name + "."))
    rest = ours[len(module) + 1 :]
    if module == "pruning":
        if rest.startswith("trunk."):
            rest = "convnext." + _authors_trunk(rest.removeprefix("trunk."))
        else:
            rest = _renamed(rest, _PRUNING_PARTS)
    elif module.startswith("modulate"):
        rest = rest.replace("affine", "affine_fc", 1)
    elif module.startswith("perturbations"):
        rest = _renamed(rest, _PERTURBATION_PARTS)
    elif module.startswith(("downs", "ups")):
        rest = rest.replace("conv", "body.0", 1)
    elif re.match(r"\d+\.", rest):  # a Restormer block of a sequence
        index, part = rest.split(".", 1)
        rest = f"{index}.{_renamed(part, _BLOCK_PARTS)}"
    return f"{_MODULES[module]}.{rest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint: the network in eval mode and what the file says about itself."""

    model: FusionNetwork
    path: Path
    sha256: str
    text: TextFeatures | None
    """The text feature that the file carries; the authors' files carry none."""
    provenance: dict[str, object]

    @property
    def preset(self) -> str:
        """Name of the preset that the network's shape equals, or ``custom``."""
        return preset_name(self.model.config)


def load_model(path: str | Path) -> FusionNetwork:
    """Return the network of a checkpoint file in eval mode; see :func:`load_checkpoint`."""
    return load_checkpoint(path).model


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint in the authors' format or in ours.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, or its tensors are not exactly this network's.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint", "check the path")
    with open(path, "rb") as stream:
        head = stream.read(9)
    # A safetensors file starts with the length of a JSON object; a torch file is a zip archive, or once was a pickle.
    if head[8:9] == b"{":
        return _load_ours(path)
    if head.startswith((b"PK", b"\x80")):
        return _load_authors(path)
    raise CheckpointError(
        f"{path} is {'no checkpoint' if head else 'empty'}",
        "copy or download it again; it must be the authors' .pth or a .safetensors written by upfusion",
    )


def save_checkpoint(
    model: FusionNetwork, path: str | Path, *, text: TextFeatures | None, provenance: Mapping[str, object]
) -> None:
    """Write our format: tensors under our names, with config, text and provenance in the metadata.

    Args:
        model: its parameters are stored in float32.
        path: a ``.safetensors`` file, replaced atomically.
        text: the feature that the network was trained or will be exported with.
        provenance: JSON-ready facts: where the weights come from.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in model.state_dict().items()}
    record: dict[str, object] = {
        "version": __version__,
        "config": model.config.to_dict(),
        "provenance": dict(provenance),
    }
    if text is not None:
        tensors[TEXT_TENSOR] = torch.from_numpy(np.ascontiguousarray(text.features))
        record["text"] = {"prompt": text.prompt, "encoder": text.encoder}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(record)})
        except SafetensorError as error:  # the tensors are ours, so it is the disk
            raise InputError(
                f"cannot write {path}: {error}", "free some space, or choose another output path"
            ) from error


def to_authors(model: FusionNetwork) -> dict[str, dict[str, Tensor]]:
    """Return what ``torch.save`` must write for the authors' code to read the network (without unused tensors)."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(".gamma"):
            tensor = tensor[:, None, None]  # torchvision keeps layer scale as (C, 1, 1)
        state[AUTHORS_PREFIX + authors_key(name)] = tensor
    return {AUTHORS_KEY: state}


def _load_ours(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file: {error}", "copy or download the file again"
        ) from error
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file of something else: it has no {METADATA_KEY!r} metadata",
            "make one from the authors' file with: upfusion convert CHECKPOINT.pth -o model.safetensors",
        )
    try:
        record = json.loads(metadata[METADATA_KEY])
        config = ModelConfig(**record["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its metadata does not describe a network: {error}",
            "update upfusion, or convert it again",
        ) from error
    text = None
    if (features := tensors.pop(TEXT_TENSOR, None)) is not None:
        text = TextFeatures(features=features.numpy(), **record["text"])
    return Checkpoint(
        model=_filled(config, tensors, path, names=str),
        path=path,
        sha256=sha256_of(path),
        text=text,
        provenance=record.get("provenance", {}),
    )


def _load_authors(path: Path) -> Checkpoint:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} is not a complete checkpoint: {reason}",
            "download it again; it must be the authors' .pth or a .safetensors written by upfusion",
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get(AUTHORS_KEY), dict):
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} holds no {AUTHORS_KEY!r} dictionary (found: {found})",
            "use the file that the authors' training script saves",
        )
    state = {name.removeprefix(AUTHORS_PREFIX): value for name, value in content[AUTHORS_KEY].items()}
    unused = sorted(name for name in state if UNUSED.match(name))
    if unused:
        groups = ", ".join(sorted({name.split(".")[0] for name in unused}))
        log.info("%s: %d tensors are never used by the network and were left out: %s", path, len(unused), groups)
    used = {name: value for name, value in state.items() if name not in set(unused)}
    return Checkpoint(
        model=_filled(_config_of(used, path), used, path, names=authors_key),
        path=path,
        sha256=sha256_of(path),
        text=None,
        provenance={"format": "authors", "unused_tensors": len(unused)},
    )


def _config_of(state: Mapping[str, Tensor], path: Path) -> ModelConfig:
    """Read the network's shape off the authors' tensors.

    Raises:
        CheckpointError: a tensor that the shape is read from is missing.
    """

    def count(pattern: str) -> int:
        return len({match[0] for name in state if (match := re.match(pattern, name))})

    def shape(name: str) -> torch.Size:
        return state[name].shape

    try:
        dim = shape("patch_embed.proj.weight")[0]
        hidden = shape("encoder_level1_vi.0.ffn.project_out.weight")[1]
        published = ModelConfig().ffn_expansion
        trunk = "channel_select.convnext.0"
        levels = ["encoder_level1_vi", "encoder_level2_vi", "encoder_level3_vi", "latent_vi"]
        return ModelConfig(
            dim=dim,
            num_blocks=tuple(count(rf"{level}\.\d+\.") for level in levels),  # type: ignore[arg-type]
            num_refinement_blocks=count(r"refinement\.\d+\."),
            heads=tuple(shape(f"{level}.0.attn.temperature")[0] for level in levels),  # type: ignore[arg-type]
            ffn_expansion=published if int(dim * published) == hidden else hidden / dim,
            text_hidden=shape("latent_shuffle_channel.text_fc.0.weight")[0],
            convnext_depths=tuple(  # type: ignore[arg-type]
                count(rf"{re.escape(trunk)}\.{2 * stage + 1}\.\d+\.") for stage in range(4)
            ),
            convnext_dims=tuple(  # type: ignore[arg-type]
                shape(f"{trunk}.{2 * stage + 1}.0.layer_scale")[0] for stage in range(4)
            ),
        )
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a UP-Fusion checkpoint: {error} is missing or has no usable shape",
            "use the authors' file, or one written by: upfusion convert",
        ) from error


def _filled(
    config: ModelConfig, tensors: Mapping[str, Tensor], path: Path, *, names: Callable[[str], str]
) -> FusionNetwork:
    """Return a network in eval mode that holds exactly these tensors; ``names`` maps our names to the file's."""
    with torch.device("meta"):
        model = FusionNetwork(config)
    wanted = {names(name): (name, tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"missing: {key}" for key in wanted if key not in tensors]
    problems += [f"foreign: {key}" for key in tensors if key not in wanted]
    for key in wanted.keys() & tensors.keys():
        shape = tensors[key].shape
        if tensors[key].numel() != wanted[key][1].numel() or shape[:1] != wanted[key][1][:1]:
            problems.append(f"shape: {key} is {tuple(shape)}, not {tuple(wanted[key][1])}")
        elif not torch.isfinite(tensors[key]).all():
            problems.append(f"not finite: {key}")
    if problems:
        shown = "\n  ".join(sorted(problems)[:20]) + (f"\n  and {len(problems) - 20} more" * (len(problems) > 20))
        raise CheckpointError(
            f"{path}: {len(problems)} tensors do not fit a UP-Fusion network (dim {config.dim}):\n  {shown}",
            "use a complete checkpoint of one training run",
        )
    state = {name: tensors[key].float().reshape(shape) for key, (name, shape) in wanted.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)
