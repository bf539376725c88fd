"""Reading, planes, padding, rounding and colour; errors name the file and what to do."""

from __future__ import annotations

import errno
from pathlib import Path

import cv2
import numpy as np
import pytest

from upfusion.runtime import images
from upfusion.runtime.errors import ArtifactError, InputError


def noise(shape: tuple[int, ...], dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("shape", [(9, 13), (9, 13, 3)])
def test_lossless_files_come_back(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    image = noise(shape)
    images.write_image(tmp_path / f"x{suffix}", image)
    assert np.array_equal(images.read_image(tmp_path / f"x{suffix}"), image)
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_survive(tmp_path: Path, suffix: str) -> None:
    image = noise((9, 13, 3), np.uint16)
    images.write_image(tmp_path / f"x{suffix}", image)
    read = images.read_image(tmp_path / f"x{suffix}")
    assert read.dtype == np.uint16
    assert np.array_equal(read, image)
    assert images.read_gray(tmp_path / f"x{suffix}").dtype == np.uint16


def test_names_need_not_be_ascii(tmp_path: Path) -> None:
    image = noise((9, 13))
    images.write_image(tmp_path / "Wärme 温.png", image)
    assert np.array_equal(images.read_image(tmp_path / "Wärme 温.png"), image)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_gray_is_read_as_opencv_reads_gray(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    images.write_image(path, noise((40, 50, 3)))
    assert np.array_equal(images.read_gray(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))


def test_colour_is_rgb(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    images.write_image(path, noise((40, 50, 3)))
    assert np.array_equal(images.read_image(path), cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"cut{suffix}"
    images.write_image(path, noise((60, 80, 3)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match=f"cut{suffix}.*(truncated|empty)") as caught:
        images.read_image(path)
    assert "again" in caught.value.hint


def test_jpeg_with_thumbnail_and_trailing_bytes_is_whole_but_its_stump_is_not(tmp_path: Path) -> None:
    plain = cv2.imencode(".jpg", noise((40, 50, 3)))[1].tobytes()
    thumbnail = cv2.imencode(".jpg", noise((8, 8)))[1].tobytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path = tmp_path / "x.jpg"
    path.write_bytes(plain[:2] + segment + plain[2:] + b"\xff\xda trailing")
    assert images.read_image(path).shape == (40, 50, 3)
    path.write_bytes(plain[:2] + segment + plain[2:-200])
    with pytest.raises(InputError, match="truncated"):
        images.read_image(path)


def test_alpha_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), noise((20, 20, 4)))
    for read in (images.read_image, images.read_gray):
        with pytest.raises(InputError, match="alpha") as caught:
            read(path)
        assert "-alpha off" in caught.value.hint
        assert "x.png" in caught.value.problem


def test_float_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    cv2.imwrite(str(path), np.full((20, 20), np.nan, np.float32))
    with pytest.raises(InputError, match=r"x\.tif: float32 pixels.*400 of its values are NaN"):
        images.read_image(path)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none\.png: No such file"):
        images.read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match=r"text\.png: not an image"):
        images.read_image(tmp_path / "text.png")


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.zeros((20, 20), np.float32), "float32 pixels, expected uint8 or uint16; float images have no agreed"),
        (np.zeros((20, 20), np.int32), "int32 pixels"),
        (np.zeros((20, 20, 4), np.uint8), "4 channels"),
        (np.zeros((20, 20, 5), np.uint8), r"shape \(20, 20, 5\)"),
        (np.zeros(20, np.uint8), r"shape \(20,\)"),
        (np.zeros((7, 20), np.uint8), "7x20 pixels .* at least 8x8"),
        ([[1, 2], [3, 4]], "expected a numpy array, got list"),
    ],
)
def test_unusable_arrays(image: object, problem: str) -> None:
    with pytest.raises(InputError, match=f"frame 3: .*{problem}") as caught:
        images.check_image(image, "frame 3")
    assert caught.value.hint


def test_sizes_must_agree() -> None:
    with pytest.raises(InputError, match=r"a\.png has 10x12 .*b\.png has 10x11") as caught:
        images.check_sizes(noise((10, 12, 3)), noise((10, 11)), "a.png", "b.png")
    assert "magick b.png -resize 12x10!" in caught.value.hint


def test_unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cannot write \.webp"):
        images.write_image(tmp_path / "x.webp", noise((9, 9)))
    with pytest.raises(InputError, match=r"cannot write .*none"):
        images.write_image(tmp_path / "none" / "x.png", noise((9, 9)))

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "x.png").write_bytes(b"earlier")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device") as caught:
        images.write_image(tmp_path / "x.png", noise((9, 9)))
    assert "free some space" in caught.value.hint
    assert (tmp_path / "x.png").read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (16, 17), (61, 83), (62, 64)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_planes_equal_the_reference_recipe(size: tuple[int, int], dtype: type) -> None:
    first, second = noise((*size, 3), dtype), noise(size, dtype, seed=1)
    below, right = (-size[0]) % 8, (-size[1]) % 8
    scale = np.float32(np.iinfo(dtype).max)

    def reference(image: np.ndarray) -> np.ndarray:
        return np.pad(image.astype(np.float32) / scale, ((0, below), (0, right)), "reflect")

    visible, infrared = images.prepare(first, second)
    for channel in range(3):
        assert np.array_equal(visible[0, channel], reference(first[..., channel]))
    assert np.array_equal(infrared[0, 0], reference(second))
    assert visible.shape[2:] == infrared.shape[2:] == images.padded_size(*size)


def test_gray_first_and_coloured_second() -> None:
    gray, colour = noise((9, 9)), noise((9, 9, 3), seed=1)
    visible, infrared = images.prepare(gray, colour)
    assert np.array_equal(visible[0, 0], visible[0, 1])
    assert np.array_equal(visible[0, 0], visible[0, 2])
    red, green, blue = (colour[..., c].astype(np.float32) / np.float32(255) for c in range(3))
    # The luma of the quotients and the quotient of the luma differ in the last bits of float32.
    assert np.allclose(infrared[0, 0, :9, :9], 0.299 * red + 0.587 * green + 0.114 * blue, rtol=0, atol=1e-6)


def test_finish_rounds_half_to_even_in_float32() -> None:
    levels = np.arange(255, dtype=np.float32)
    ties = (levels + np.float32(0.5)) / np.float32(255)
    values = np.concatenate([ties, np.random.default_rng(0).random(8000 - 255, np.float32) * 1.4 - 0.2])
    values = values.astype(np.float32).reshape(80, 100)
    expected = np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)
    assert np.array_equal(images.finish(values.copy(), 75, 93), expected[:75, :93])
    out = np.empty((80, 100), np.uint8)
    assert images.finish(values.copy(), 80, 100, out) is out
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finish_refuses_what_is_not_finite(bad: float) -> None:
    values = np.zeros((16, 16), np.float32)
    values[3, 4] = bad
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        images.finish(values, 16, 16)


@pytest.mark.parametrize("size", ["480x640", "301x413"])
def test_finish_on_golden_output(golden: Path, size: str) -> None:
    stored = np.load(golden / "e2e" / f"{size}_fused.npz")["fused_f32_every4"]
    written = images.read_image(golden / "e2e" / f"{size}_fused.png")
    assert written.ndim == 3  # three equal channels
    assert not images.is_coloured(written)
    assert np.array_equal(images.finish(stored.copy(), *stored.shape), written[::4, ::4, 0])


def test_chroma_is_kept_and_luma_replaced() -> None:
    first, fused = noise((40, 50, 3)), noise((40, 50), seed=1)
    merged = images.merge_chroma(first, fused).astype(np.float64)
    red, green, blue = (first[..., c].astype(np.float64) for c in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = 128 + 0.5 * (blue - luma) / 0.886, 128 + 0.5 * (red - luma) / 0.701
    y = fused.astype(np.float64)
    expected = np.stack(
        [
            y + 1.402 * (cr - 128),
            y - (0.114 * 1.772 * (cb - 128) + 0.299 * 1.402 * (cr - 128)) / 0.587,
            y + 1.772 * (cb - 128),
        ],
        axis=-1,
    )
    exact = np.clip(expected, 0, 255)
    # Half a level from rounding, plus what float32 loses on values up to 512.
    assert np.abs(merged - exact).max() <= 0.5 + 1e-4


def test_chroma_of_unchanged_luma_is_the_image_itself() -> None:
    gray = noise((16, 16))
    image = np.stack([gray, gray, gray], axis=-1)
    assert np.array_equal(images.merge_chroma(image, gray), image)
    assert np.array_equal(images.merge_chroma(gray, gray), image)
    wide = image.astype(np.uint16) * 257
    assert np.array_equal(images.merge_chroma(wide, gray), image)


def test_is_coloured() -> None:
    gray = np.repeat(noise((40, 50))[..., None], 3, axis=2)
    assert not images.is_coloured(gray)
    assert not images.is_coloured(gray[..., 0])
    gray[7, 9, 1] ^= 1  # off the sampled grid
    assert images.is_coloured(gray)
