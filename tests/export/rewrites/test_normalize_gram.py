from __future__ import annotations

import onnxruntime
import torch

from upfusion.export.rewrites.normalize_gram import NormalizedGram, floored_norm, normalize_gram
from upfusion.export.rewrites.open_attention import CosineOfMaps


def test_is_the_same_network_in_float64(rewritten, deploy):
    report = rewritten(["normalize_gram"])[-1]
    assert report.rewritten == 18  # 14 blocks and 4 perturbation modules
    assert normalize_gram(deploy).rewritten == 0  # nothing is left to change the second time


def test_keeps_the_floor_of_the_norms():
    """Rows of zeros give zeros, and rows shorter than the floor are divided by it, as F.normalize does."""
    q, k = torch.randn(2, 1, 2, 4, 5, 10, dtype=torch.float64)
    q[0, 0, 1] = 0
    k[0, 1, 2] *= 1e-14
    want = CosineOfMaps()((q, k), 1)
    assert torch.allclose(NormalizedGram()((q, k), 1), want, rtol=1e-12, atol=0)
    assert torch.allclose(NormalizedGram()((torch.cat([q, k], 1),), 1), want, rtol=1e-12, atol=0)
    assert not want[0, 0, 1].any()


def test_sums_in_float32_where_half_overflows():
    """Sums of squares of 300 over 1000 pixels are 9e7; half ends at 65,504."""
    maps = torch.full((1, 1, 2, 20, 50), 300.0).half()
    assert torch.allclose(NormalizedGram()((maps, maps), 1), torch.ones(1, 1, 2, 2), rtol=1e-6)


def test_norms_in_onnx_runtime_keep_float32s_precision(tmp_path):
    """Its ReduceL2 over 307,200 values in one go is off by 5e-5; the graph must not ask for that."""
    maps = torch.rand(1, 2, 480, 640) + 0.3

    class Norm(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return floored_norm(x)

    path = tmp_path / "norm.onnx"
    torch.onnx.export(Norm().eval(), (maps,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: maps.numpy()})
    exact = floored_norm(maps.double())
    assert torch.allclose(torch.from_numpy(got).double(), exact, rtol=2e-6)
