"""Queries, keys and values made one after the other."""

from __future__ import annotations

import itertools

from torch import nn

from upfusion.export.deploy import DeployNetwork, blocks_at
from upfusion.export.rewrites.open_attention import OpenAttention, open_attentions
from upfusion.export.rewrites.report import RewriteReport
from upfusion.export.rewrites.weights import bias_of, conv_of, matrix


def split_qkv(deploy: DeployNetwork) -> RewriteReport:
    """Cut the convolutions that make queries, keys and values together, where maps are largest.

    With the rows of the 1x1 convolution W and of the depthwise convolution D cut in thirds::

        [q; k; v] = D W x    is    q = D_q W_q x,  k = D_k W_k x,  v = D_v W_v x

    Only one third of the map between the two convolutions lives at a time, and q and k are gone before v is made.
    x is read three times, so this is done only in the blocks at full resolution. Declines where fold_layer_norm has
    put a norm into the convolution.
    """
    open_attentions(deploy)
    done, folded = 0, 0
    for block in itertools.chain(*blocks_at(deploy, 0)):
        attention = block.attention
        if not isinstance(attention, OpenAttention) or not isinstance(attention.to_qkv, nn.Conv2d):
            folded += 1
            continue
        bias = None if attention.to_qkv.bias is None else bias_of(attention.to_qkv).chunk(3)
        rows = matrix(attention.to_qkv).chunk(3)
        kernels = attention.depthwise.weight.double().chunk(3)
        attention.depthwise = nn.ModuleList(
            conv_of(kernel, None, like=attention.depthwise, groups=len(kernel)) for kernel in kernels
        )
        attention.to_qkv = nn.ModuleList(
            conv_of(part, bias and bias[index], like=attention.to_qkv) for index, part in enumerate(rows)
        )
        done += 1
    skipped = (f"{folded} blocks hold no plain convolution any more; leave out fold_layer_norm",) if folded else ()
    return RewriteReport("split_qkv", done, skipped)
