"""Half with wide sums, and TF32 convolutions, emulated on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from upfusion.arithmetic import HalfArithmetic, Tf32Convolutions, not_emulated, to_tf32


def test_every_half_result_is_rounded_once_and_sums_stay_wide():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 64, 9, 7, generator=generator).half()
    weight = torch.randn(32, 64, 3, 3, generator=generator).half()
    with HalfArithmetic():
        got = F.gelu(F.conv2d(x, weight, padding=1)) * 3
    exact = F.conv2d(x.float(), weight.float(), padding=1)
    assert got.dtype == torch.float16
    assert torch.equal(got, (F.gelu(exact.half().float()).half().float() * 3).half())


def test_overflow_is_infinite_and_is_seen_before_it_is_rounded():
    seen = []
    x = torch.full((4,), 300.0).half()
    with HalfArithmetic(on_result=lambda values: seen.append(float(values.abs().max()))):
        squares = x * x
    assert torch.isinf(squares).all()
    assert seen == [90000.0]


def test_wide_operands_make_wide_results():
    half, wide = torch.ones(3).half() / 3, torch.ones(3) / 3
    with HalfArithmetic():
        total = half + wide
        moved = half.reshape(3, 1).transpose(0, 1)
    assert total.dtype == torch.float32
    assert torch.equal(total, half.float() + wide)
    assert moved.dtype == torch.float16


def test_float32_is_left_alone():
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 1, 1)
    with HalfArithmetic():
        got = F.conv2d(x, weight)
    assert torch.equal(got, F.conv2d(x, weight))


def test_an_emulation_can_be_left_for_a_while():
    seen: list[float] = []
    with HalfArithmetic(lambda values: seen.append(float(values.max()))):
        with not_emulated():
            torch.ones(3).half() * 2
        assert seen == []
        torch.ones(3).half() * 2
    assert seen == [2.0]


def test_tf32_keeps_ten_bits_to_nearest_even():
    step = 2.0**-10
    x = torch.tensor([1 + step, 1 + step / 2, 1 + 1.5 * step, -(1 + 0.6 * step), 3.0e38, 0.0])
    assert to_tf32(x)[:4].tolist() == [1 + step, 1.0, 1 + 2 * step, -(1 + step)]
    assert torch.isfinite(to_tf32(x)).all()


def test_tf32_touches_dense_convolutions_only():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 8, 6, 6, generator=generator)
    dense = torch.randn(8, 8, 3, 3, generator=generator)
    depthwise = torch.randn(8, 1, 3, 3, generator=generator)
    with Tf32Convolutions():
        rounded = F.conv2d(x, dense, padding=1)
        kept = F.conv2d(x, depthwise, padding=1, groups=8)
        product = x.flatten(2) @ x.flatten(2).transpose(1, 2)
    assert torch.equal(rounded, F.conv2d(to_tf32(x), to_tf32(dense), padding=1))
    assert not torch.equal(rounded, F.conv2d(x, dense, padding=1))
    assert torch.equal(kept, F.conv2d(x, depthwise, padding=1, groups=8))
    assert torch.equal(product, x.flatten(2) @ x.flatten(2).transpose(1, 2))
