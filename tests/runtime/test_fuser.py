"""The fuser: what it takes, what it gives back, and what it says when something does not fit."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from upfusion.runtime import images
from upfusion.runtime.backends.null import NullBackend
from upfusion.runtime.errors import ArtifactError, DeviceError, InputError, UPFusionError
from upfusion.runtime.fuser import Fuser, load


def expected(visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
    """The tiny graph in numpy, on exact planes."""
    planes, thermal = images.prepare(visible, infrared)
    luma = np.tensordot(np.array([0.299, 0.587, 0.114]), planes[0].astype(np.float64), 1)
    fused = (luma + thermal[0, 0]) / 2
    return np.rint(fused[: visible.shape[0], : visible.shape[1]] * 255)


def assert_same(found: np.ndarray, visible: np.ndarray, infrared: np.ndarray) -> None:
    assert found.dtype == np.uint8
    # Within one level: float32 in another order than the float64 reference may fall on the other side of a half.
    assert np.abs(found.astype(int) - expected(visible, infrared)).max() <= 1


@pytest.fixture
def fuser(tmp_path: Path, make: Any) -> Any:
    with load(make.onnx(tmp_path / "tiny.onnx", make.tensor_contract()), options=make.options) as loaded:
        yield loaded


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (61, 83)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_pair(fuser: Fuser, noise: Any, size: tuple[int, int], dtype: type) -> None:
    visible, infrared = noise((*size, 3), dtype), noise(size, dtype, 1)
    fused = fuser(visible, infrared, "gray")
    assert fused.shape == size
    assert_same(fused, visible, infrared)


def test_mixed_depths_and_gray_visible(fuser: Fuser, noise: Any) -> None:
    visible, infrared = noise((16, 24)), noise((16, 24), np.uint16, 1)
    assert_same(fuser(visible, infrared), np.repeat(visible[..., None], 3, 2), infrared)


def test_infrared_with_three_channels_becomes_its_luma(fuser: Fuser, noise: Any) -> None:
    visible, gray = noise((16, 24, 3)), noise((16, 24), seed=1)
    assert_same(fuser(visible, np.repeat(gray[..., None], 3, 2), "gray"), visible, gray)


def test_color(fuser: Fuser, noise: Any) -> None:
    visible, infrared = noise((16, 24, 3)), noise((16, 24), seed=1)
    gray = fuser(visible, infrared, "gray")
    coloured = fuser(visible, infrared, "ycbcr")
    assert np.array_equal(coloured, images.merge_chroma(visible, gray))
    assert np.array_equal(fuser(visible, infrared), coloured)
    equal = np.repeat(visible[..., :1], 3, 2)
    assert fuser(equal, infrared).shape == (16, 24)
    assert fuser(equal, infrared, "ycbcr").shape == (16, 24, 3)
    assert fuser(visible[..., 0], infrared, "ycbcr").shape == (16, 24)
    with pytest.raises(InputError, match="unknown color 'rgb'"):
        fuser(visible, infrared, "rgb")  # type: ignore[arg-type]


def test_batches_and_lists(fuser: Fuser, noise: Any) -> None:
    visible, infrared = noise((3, 17, 24, 3)), noise((3, 17, 24), seed=1)
    singles = [fuser(one, two) for one, two in zip(visible, infrared, strict=True)]
    assert np.array_equal(fuser(visible, infrared), np.stack(singles))
    assert np.array_equal(
        fuser(visible[..., 0], infrared),
        np.stack([fuser(v[..., 0], i) for v, i in zip(visible, infrared, strict=True)]),
    )
    small = noise((9, 11, 3)), noise((9, 11))
    results = fuser([visible[0], small[0], visible[1]], [infrared[0], small[1], infrared[1]])
    assert [result.shape for result in results] == [(17, 24, 3), (9, 11, 3), (17, 24, 3)]
    assert np.array_equal(results[2], singles[1])
    # One coloured image makes the whole array coloured, since an array has one shape.
    mixed = np.stack([visible[0], np.repeat(visible[1][..., :1], 3, 2)])
    assert fuser(mixed, infrared[:2]).shape == (2, 17, 24, 3)


class Recorder:
    """A backend without buffers that writes down the shapes it was given."""

    device = "recorder"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.closed = False

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.shapes.append(inputs["visible"].shape)
        return {"fused": inputs["infrared"].copy()}

    def close(self) -> None:
        self.closed = True


def test_fixed_batch_is_filled_up(make: Any, noise: Any) -> None:
    backend = Recorder()
    fuser = Fuser(backend, make.tensor_contract(make.one_size(16, 24), batch=4))
    visible, infrared = noise((6, 16, 24, 3)), noise((6, 16, 24), seed=1)
    assert np.array_equal(fuser(visible, infrared, "gray"), infrared)
    assert backend.shapes == [(4, 3, 16, 24)] * 2


def test_open_batch_is_limited(make: Any, noise: Any) -> None:
    backend = Recorder()
    fuser = Fuser(backend, make.tensor_contract(batch=1, open_batch=True), max_batch=4)
    visible, infrared = noise((6, 16, 24, 3)), noise((6, 16, 24), seed=1)
    assert np.array_equal(fuser(visible, infrared, "gray"), infrared)
    assert backend.shapes == [(4, 3, 16, 24), (2, 3, 16, 24)]


def test_sizes_that_the_artifact_does_not_take(make: Any, noise: Any) -> None:
    fuser = Fuser(
        NullBackend(make.tensor_contract(make.one_size(304, 416))),
        make.tensor_contract(make.one_size(304, 416)),
        name="fusion.onnx",
        source="weights.pth",
    )
    assert fuser(noise((297, 409, 3)), noise((297, 409))).shape == (297, 409, 3)
    with pytest.raises(
        InputError, match=r"have 296x409 pixels .* fusion\.onnx takes 297\.\.304 x 409\.\.416"
    ) as caught:
        fuser(noise((296, 409, 3)), noise((296, 409)))
    assert "upfusion export weights.pth -o fusion.onnx --size 296x409, or --dynamic" in caught.value.hint


def test_arrays_that_do_not_fit(fuser: Fuser, noise: Any) -> None:
    visible, infrared = noise((16, 24, 3)), noise((16, 24))
    with pytest.raises(InputError, match=r"visible image has 16x24 .* infrared image has 16x16"):
        fuser(visible, infrared[:, :16])
    with pytest.raises(InputError, match=r"visible image: .*alpha"):
        fuser(noise((16, 24, 4)), infrared)
    with pytest.raises(InputError, match=r"infrared image 1: float32 pixels"):
        fuser([visible] * 2, [infrared, infrared.astype(np.float32)])
    with pytest.raises(InputError, match="2 visible images, infrared: 1"):
        fuser([visible] * 2, [infrared])
    with pytest.raises(InputError, match=r"visible batch \(2, 16, 24, 3\), infrared \(16, 24\)"):
        fuser(np.stack([visible] * 2), infrared)


@pytest.mark.parametrize("color", ["gray", "ycbcr"])
def test_image_graphs(tmp_path: Path, make: Any, noise: Any, color: str) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.image_contract(color))
    visible, infrared = noise((17, 23, 3)), noise((17, 23), seed=1)
    with load(path, options=make.options) as fuser:
        fused = fuser(visible, infrared)
        if color == "gray":
            assert np.array_equal(fused, images.merge_chroma(visible, infrared))
            assert np.array_equal(fuser(visible, infrared, "gray"), infrared)
        else:
            assert np.array_equal(fused, np.repeat(infrared[..., None], 3, 2))
            with pytest.raises(InputError, match="puts the colour back inside the graph") as caught:
                fuser(visible, infrared, "gray")
            assert "--color gray" in caught.value.hint
        assert np.array_equal(fuser(visible[..., 0], infrared), infrared)
        with pytest.raises(InputError, match="takes 8-bit images, these are uint16"):
            fuser(visible.astype(np.uint16), infrared)
        with pytest.raises(InputError, match="infrared images with one channel"):
            fuser(visible, visible)


def test_image_graph_that_gives_the_luma_too(tmp_path: Path, make: Any, noise: Any) -> None:
    """``gray`` of a coloured graph is its second output, whatever the order of its channels."""
    contract = make.image_contract("ycbcr")
    luma = dataclasses.replace(make.image_contract("gray").outputs[0], name="luma")
    visible, infrared = noise((17, 23, 3)), noise((17, 23), seed=1)
    bgr = dataclasses.replace(contract.inputs[0], meaning="NHWC, BGR")
    nodes = [helper.make_node("Identity", ["visible"], ["fused"]), helper.make_node("Identity", ["infrared"], ["luma"])]
    contract = dataclasses.replace(contract, inputs=(bgr, contract.inputs[1]), outputs=(*contract.outputs, luma))
    path = make.onnx(tmp_path / "tiny.onnx", contract, nodes=(nodes, []))
    with load(path, options=make.options) as fuser:
        assert np.array_equal(fuser(visible, infrared), visible)
        assert np.array_equal(fuser(visible, infrared, "gray"), infrared)
        assert np.array_equal(fuser(visible[..., 0], infrared), infrared)
        assert np.array_equal(fuser(np.stack([visible] * 2), np.stack([infrared] * 2), "gray")[1], infrared)
        gray = np.repeat(visible[..., :1], 3, axis=2)
        assert np.array_equal(fuser(gray, infrared), infrared)  # auto: not coloured


def test_results_are_the_callers_own(fuser: Fuser, noise: Any) -> None:
    visible, infrared = noise((16, 24, 3)), noise((16, 24), seed=1)
    first = fuser(visible, infrared)
    kept = first.copy()
    fuser(255 - visible, 255 - infrared)
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("contexts", [1, 3])
def test_threads_share_a_fuser(tmp_path: Path, make: Any, noise: Any, contexts: int) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract())
    pairs = [(noise((16, 24, 3), seed=seed), noise((16, 24), seed=seed + 50)) for seed in range(8)]
    with load(path, options=make.options, contexts=contexts) as fuser:
        alone = [fuser(*pair) for pair in pairs]
        wrong: list[int] = []

        def work(place: int) -> None:
            for _ in range(40):
                if not np.array_equal(fuser(*pairs[place]), alone[place]):
                    wrong.append(place)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_close(make: Any, noise: Any) -> None:
    backend = Recorder()
    with Fuser(backend, make.tensor_contract(), name="fusion.onnx") as fuser:
        pass
    fuser.close()
    assert backend.closed
    with pytest.raises(InputError, match=r"fusion\.onnx is closed"):
        fuser(noise((16, 24, 3)), noise((16, 24)))


def test_a_backend_with_one_context_says_so(make: Any) -> None:
    with pytest.raises(InputError, match="one context only"):
        Fuser(Recorder(), make.tensor_contract(), contexts=2)
    with pytest.raises(InputError, match="at least 1"):
        Fuser(Recorder(), make.tensor_contract(), contexts=0)


def test_results_that_are_not_finite_are_refused(make: Any, noise: Any) -> None:
    class Broken(Recorder):
        def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            return {"fused": np.full_like(inputs["infrared"], np.nan)}

    fuser = Fuser(Broken(), make.tensor_contract())
    for _ in range(2):  # the worker comes back after a failure
        with pytest.raises(ArtifactError, match="NaN"):
            fuser(noise((16, 24, 3)), noise((16, 24)))


def test_warm_up_runs_every_context(make: Any) -> None:
    ran: list[tuple[int, ...]] = []

    class Counting(NullBackend):
        def run(self, inputs: Any) -> Any:
            ran.append(inputs["visible"].shape)
            return super().run(inputs)

        def another(self) -> Counting:
            return Counting(make.tensor_contract())

    Fuser(Counting(make.tensor_contract()), make.tensor_contract(), contexts=2).warm_up()
    assert ran == [(1, 3, 32, 48)] * 4


class Short(NullBackend):
    """No room for a run, nor for more than ``most`` contexts; ``opened`` holds those that are not closed."""

    def __init__(self, contract: Any, most: int, opened: list[Short]) -> None:
        super().__init__(contract)
        self.most, self.opened = most, opened
        opened.append(self)

    def run(self, inputs: Any) -> Any:
        raise DeviceError("out of memory", "use less")

    def another(self) -> Short:
        if len(self.opened) == self.most:
            raise DeviceError("out of memory", "use less")
        return Short(self._contract, self.most, self.opened)

    def close(self) -> None:
        self.opened.remove(self)


@pytest.mark.parametrize(("contexts", "most"), [(1, 1), (3, 3), (3, 2), (0, 1)])
def test_what_fails_to_load_gives_its_memory_back(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch, contexts: int, most: int
) -> None:
    """The first run, a further context, and a wrong number of them."""
    opened: list[Short] = []
    contract = make.tensor_contract()
    opening = lambda *_: (Short(contract, most, opened), make.manifest(contract))  # noqa: E731
    monkeypatch.setattr("upfusion.runtime.fuser.open_backend", opening)
    with pytest.raises(UPFusionError):
        load(tmp_path / "x.onnx", contexts=contexts, warm_up=True)
    assert not opened


def test_parts_add_up_to_about_a_call(fuser: Fuser, noise: Any) -> None:
    parts = fuser.parts_ms(noise((61, 83, 3)), noise((61, 83)))
    assert list(parts) == ["prepare", "run", "finish"]
    assert all(value > 0 for value in parts.values())


def test_callers_with_bgr_images(tmp_path: Path, make: Any, noise: Any) -> None:
    path = make.onnx(tmp_path / "tiny.onnx", make.tensor_contract())
    visible, infrared = noise((17, 23, 3)), noise((17, 23), seed=1)
    with load(path, options=make.options) as rgb, load(path, options=make.options, channels="bgr") as bgr:
        for color in ("gray", "ycbcr", "auto"):
            expected, found = rgb(visible, infrared, color), bgr(visible[..., ::-1], infrared, color)
            assert np.array_equal(found, expected if color == "gray" else expected[..., ::-1])
            assert found.flags.c_contiguous
    with pytest.raises(InputError, match="unknown order of channels 'grb'"):
        load(path, channels="grb")  # type: ignore[arg-type]


@pytest.mark.parametrize("caller", ["rgb", "bgr"])
@pytest.mark.parametrize("graph", ["RGB", "BGR"])
def test_image_graphs_get_their_order(make: Any, noise: Any, caller: Any, graph: str) -> None:
    contract = make.image_contract("ycbcr")
    visible_spec = dataclasses.replace(contract.inputs[0], meaning=f"NHWC, {graph}, 0..255, not padded")
    contract = dataclasses.replace(contract, inputs=(visible_spec, contract.inputs[1]))
    seen: list[np.ndarray] = []

    class Echo(NullBackend):
        """Gives the visible image back."""

        def run(self, inputs: Any) -> Any:
            seen.append(inputs["visible"].copy())
            return {"fused": inputs["visible"]}

    rgb = noise((17, 23, 3))
    image = rgb if caller == "rgb" else rgb[..., ::-1]
    fused = Fuser(Echo(contract), contract, channels=caller)(image, noise((17, 23)))
    assert np.array_equal(seen[0][0], rgb if graph == "RGB" else rgb[..., ::-1])
    assert np.array_equal(fused, image)
    assert fused.flags.c_contiguous
