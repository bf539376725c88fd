from __future__ import annotations

import pytest

from upfusion.export.builder.layers import bytes_moved

TENSOR = "{{ Name: {}, Dimensions: [{}], Strides: [1,1], Datatype: {}, Format: (NHWC) Channel major format }}"
LINE = "Name: node_conv_3, LayerType: correlation, Inputs: [ {} ], Constants: [ {} ], Outputs: [ {} ], TacticName: any"


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        (
            LINE.format(
                TENSOR.format("x", "1,3,8,8", "Half") + ", " + TENSOR.format("y", "1,3", "Float"),
                TENSOR.format("weight", "3,3,1,1", "Half"),
                TENSOR.format("z", "1,5,8,8", "Half"),
            ),
            3 * 64 * 2 + 3 * 4 + 5 * 64 * 2,
        ),
        # The same tensor twice is read once.
        (LINE.format(", ".join([TENSOR.format("x", "7", "Bool")] * 2), "", TENSOR.format("y", "", "Int64")), 7 + 8),
        (LINE.format(TENSOR.format("x", "1,3,-1,8", "Half"), "", TENSOR.format("y", "2", "Half")), None),
        (LINE.format(TENSOR.format("x", "1,3", "FP4"), "", TENSOR.format("y", "2", "Half")), None),
        ("Name: anything else", 0),
        (
            "Layers:\n"
            + "\n".join([LINE.format(TENSOR.format("x", "7", "Bool"), "", TENSOR.format("y", "", "Bool"))] * 2),
            16,
        ),
        ("Total Activation Memory: 12 bytes", 0),
    ],
)
def test_counts_what_a_line_says(line, moved):
    assert bytes_moved(line) == moved
