"""Exact rewrites of the deploy form: each is an identity over the reals, proven in float64 by its test.

A rewrite changes the :class:`~upfusion.export.deploy.DeployNetwork` in place and reports. ``REWRITES`` is the order in
which they run; later ones may need what earlier ones expose, and decline with a reason without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal

from upfusion.export.deploy import DeployNetwork
from upfusion.export.rewrites.attend_channels_last import attend_channels_last
from upfusion.export.rewrites.attend_in_strips import attend_in_strips
from upfusion.export.rewrites.channels_last import channels_last
from upfusion.export.rewrites.fold_front_end import fold_front_end
from upfusion.export.rewrites.fold_layer_norm import fold_layer_norm
from upfusion.export.rewrites.fold_norm_scale import fold_norm_scale
from upfusion.export.rewrites.fold_prompt import fold_prompt
from upfusion.export.rewrites.fold_reductions import fold_reductions
from upfusion.export.rewrites.fold_trunk_scales import fold_trunk_scales
from upfusion.export.rewrites.gather_weights import gather_weights
from upfusion.export.rewrites.group_feed_forward import group_feed_forward, halve_feed_forward, split_gate
from upfusion.export.rewrites.join_query_key import join_query_key
from upfusion.export.rewrites.merge_attention_output import merge_attention_output
from upfusion.export.rewrites.normalize_gram import normalize_gram
from upfusion.export.rewrites.pad_hidden import pad_hidden
from upfusion.export.rewrites.pair_encoders import pair_encoders
from upfusion.export.rewrites.rank_logits import rank_logits
from upfusion.export.rewrites.read_streams_once import read_streams_once
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.threshold_mask import threshold_mask
from upfusion.runtime.errors import InputError

Rewrite = Callable[[DeployNetwork], RewriteReport]
Target = Literal["tensorrt", "cpu"]

REWRITES: tuple[Rewrite, ...] = (
    fold_prompt,
    rank_logits,
    gather_weights,
    read_streams_once,
    threshold_mask,
    fold_front_end,
    fold_trunk_scales,
    normalize_gram,
    merge_attention_output,
    fold_norm_scale,
    pad_hidden,
    group_feed_forward,
    halve_feed_forward,
    split_gate,
    fold_layer_norm,
    fold_reductions,
    join_query_key,
    pair_encoders,
    attend_channels_last,
    channels_last,
    attend_in_strips,
)

NAMES: tuple[str, ...] = tuple(rewrite.__name__ for rewrite in REWRITES)

LEAN = ("group_feed_forward", "attend_in_strips")
"""What ``--lean`` adds: less memory, more passes."""

LEAN_WITHOUT = ("pair_encoders", "halve_feed_forward")
"""What ``--lean`` leaves out: both streams of a level would live at once, and larger groups."""

CHANNELS_LAST = ("attend_channels_last", "channels_last", "halve_feed_forward")
"""What only pays where convolutions keep channels last, and half precision counts: on a GPU."""

DEFAULTS: Mapping[Target, tuple[str, ...]] = {
    "tensorrt": tuple(name for name in NAMES if name not in (*LEAN, "fold_layer_norm")),
    "cpu": tuple(name for name in NAMES if name not in (*LEAN, *CHANNELS_LAST, "join_query_key")),
}
"""What is on without further words.

``tensorrt`` was chosen by what TensorRT-RTX's engine moves and holds, and by node counts (``benchmarks/rewrites.py``),
not timed on a GPU; ``cpu`` was timed beside the plain export (``benchmarks/latency.py``).
"""


def chosen_rewrites(
    target: Target, *, plain: bool = False, lean: bool = False, without: Collection[str] = ()
) -> tuple[str, ...]:
    """Return the names of the default set for a target, less ``without``, in the order of ``REWRITES``.

    Args:
        target: where the graph shall run.
        plain: none at all.
        lean: the set that saves memory.
        without: names to leave out of the set.

    Raises:
        InputError: ``plain`` with another choice, or a name that is not in the set.
    """
    if plain:
        if lean or without:
            raise InputError(
                "--plain applies no rewrite, so --lean and --without-rewrite say nothing", "leave out one of them"
            )
        return ()
    chosen = {*DEFAULTS[target], *LEAN} - {*LEAN_WITHOUT} if lean else {*DEFAULTS[target]}
    if unknown := sorted(set(without) - chosen):
        raise InputError(
            f"no rewrite of the set for {target} is called {', '.join(unknown)}",
            f"the rewrites are: {', '.join(name for name in NAMES if name in chosen)}",
        )
    return tuple(name for name in NAMES if name in chosen and name not in without)


def apply_rewrites(deploy: DeployNetwork, names: Collection[str]) -> list[RewriteReport]:
    """Run the named rewrites in the order of ``REWRITES`` and return what each did.

    Raises:
        InputError: a name that is no rewrite.
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise InputError(f"no rewrite is called {', '.join(unknown)}", f"the rewrites are: {', '.join(NAMES)}")
    return [rewrite(deploy) for rewrite in REWRITES if rewrite.__name__ in names]
