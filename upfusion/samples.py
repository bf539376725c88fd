"""Two image pairs that this project draws itself, for the demo and for tests: no photograph is shipped.

A night street: the visible image shows lit windows, lamps and road markings in colour, the infrared image warm people
and a car that the visible image hardly shows. A head phantom: a CT-like slice with a bright skull, and an MRI-like
slice with soft tissue and a lesion.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upfusion.runtime.files import create_folder
from upfusion.runtime.images import write_image
from upfusion.runtime.pairs import Pair

Gray = NDArray[np.uint8]
Rgb = NDArray[np.uint8]


def night_street(height: int = 480, width: int = 640, seed: int = 3) -> tuple[Rgb, Gray]:
    """Return a visible (H, W, 3) RGB and an infrared (H, W) image, uint8, of the same street."""
    import cv2

    random = np.random.Generator(np.random.PCG64(seed))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    horizon = int(0.55 * height)
    visible = np.zeros((height, width, 3), np.float32)
    infrared = np.full((height, width), 60, np.float32)

    visible[:horizon] = np.linspace(4, 16, horizon)[:, None, None] * _rgb([0.7, 0.8, 1.2])
    infrared[:horizon] = np.linspace(18, 40, horizon)[:, None]
    road = (rows[horizon:] - horizon) / (height - horizon)
    visible[horizon:] = (14 + 22 * road)[..., None] * _rgb([1.0, 0.97, 0.9])
    infrared[horizon:] = 70 + 25 * road

    left: int = 0
    while left < width:  # a row of houses, some windows lit; glass is cold, walls keep the day's warmth
        house_width = int(random.integers(width // 9, width // 5))
        top = int(horizon * random.uniform(0.25, 0.65))
        right = min(left + house_width, width)
        visible[top:horizon, left:right] = random.uniform(10, 22) * _rgb([1.0, 0.95, 0.9])
        infrared[top:horizon, left:right] = random.uniform(75, 110)
        for row in range(top + 10, horizon - 18, 26):
            for column in range(left + 8, right - 16, 22):
                lit = random.random() < 0.35
                glow = random.uniform(120, 230) * _rgb([1.0, 0.85, 0.55]) if lit else _rgb([6, 8, 11])
                visible[row : row + 14, column : column + 10] = glow
                infrared[row : row + 14, column : column + 10] -= 22
        left = right + int(random.integers(0, 8))

    center = width // 2
    for dash in np.linspace(0.02, 0.9, 7):  # road markings: paint is bright, and as warm as the road
        y, half = horizon + int(dash * (height - horizon)), int(2 + 8 * dash)
        visible[y : y + 4 + int(18 * dash), center - half : center + half] += 95
    for lamp in (0.12, 0.5, 0.86):  # street lamps
        cx, cy = int(lamp * width), int(0.32 * height)
        distance = np.hypot(columns - cx, rows - cy)
        visible += (190 * np.exp(-distance / (0.06 * width)))[..., None] * _rgb([1.0, 0.83, 0.5])
        pool = np.exp(-(((columns - cx) / (0.11 * width)) ** 2) - ((rows - 0.8 * height) / (0.12 * height)) ** 2)
        visible += (60 * pool)[..., None] * _rgb([1.0, 0.85, 0.6])
        cv2.line(visible, (cx, cy), (cx, horizon + 20), (28, 28, 28), 3)
        infrared += 45 * np.exp(-((distance / (0.02 * width)) ** 2))

    def person(x: float, y: float, size: float) -> None:
        cx, cy, unit = int(x * width), int(y * height), size * height
        for target, body, head in ((infrared, 215.0, 245.0), (visible, None, None)):
            colour = (9.0, 9.0, 11.0) if body is None else body
            skin = (20.0, 15.0, 12.0) if head is None else head
            cv2.ellipse(target, (cx, cy), (int(0.13 * unit), int(0.3 * unit)), 0, 0, 360, colour, -1)
            cv2.circle(target, (cx, cy - int(0.4 * unit)), int(0.1 * unit), skin, -1)
            for leg in (-0.06, 0.06):
                foot = (cx + int(2.2 * leg * unit), cy + int(0.62 * unit))
                cv2.line(target, (cx + int(leg * unit), cy + int(0.2 * unit)), foot, colour, max(2, int(0.07 * unit)))

    for place in ((0.22, 0.68, 0.2), (0.29, 0.66, 0.18), (0.66, 0.63, 0.13), (0.93, 0.75, 0.27)):
        person(*place)
    car = (int(0.42 * width), int(0.6 * height), int(0.16 * width), int(0.09 * height))
    for target, body, roof in ((visible, (17, 17, 22), (12, 12, 16)), (infrared, 120, 105)):
        cv2.rectangle(target, car[:2], (car[0] + car[2], car[1] + car[3]), body, -1)
        cv2.rectangle(
            target, (car[0] + car[2] // 5, car[1] - car[3] // 2), (car[0] + 4 * car[2] // 5, car[1]), roof, -1
        )
    cv2.rectangle(infrared, (car[0] + 6, car[1] + 6), (car[0] + car[2] // 3, car[1] + car[3] - 8), 235, -1)  # engine
    for share in (0.08, 0.92):
        cv2.circle(visible, (car[0] + int(share * car[2]), car[1] + car[3] // 2), 4, (255, 60, 40), -1)

    visible += random.normal(0, 2.5, visible.shape) + 3 * _texture(random, height, width)[..., None]
    infrared += random.normal(0, 2.0, infrared.shape) + 4 * _texture(random, height, width)
    return _bytes(cv2.GaussianBlur(visible, (0, 0), 0.7)), _bytes(cv2.GaussianBlur(infrared, (0, 0), 1.1))


def head_phantom(side: int = 256, seed: int = 5) -> tuple[Gray, Gray]:
    """Return a CT-like and an MRI-like slice of the same head, (side, side) uint8 on exactly black ground."""
    import cv2

    random = np.random.Generator(np.random.PCG64(seed))
    ct, mri = np.zeros((side, side), np.float32), np.zeros((side, side), np.float32)

    def ellipse(
        target: NDArray[np.float32], x: float, y: float, a: float, b: float, angle: float, level: float
    ) -> None:
        middle, axes = (int(x * side), int(y * side)), (int(a * side), int(b * side))
        cv2.ellipse(target, middle, axes, angle, 0, 360, level, -1)

    ellipse(mri, 0.5, 0.5, 0.36, 0.45, 0, 70)  # scalp
    ellipse(ct, 0.5, 0.5, 0.36, 0.45, 0, 45)
    ellipse(ct, 0.5, 0.5, 0.345, 0.435, 0, 245)  # skull: bright in CT, dark in MRI
    ellipse(mri, 0.5, 0.5, 0.345, 0.435, 0, 14)
    ellipse(ct, 0.5, 0.5, 0.31, 0.4, 0, 72)
    ellipse(mri, 0.5, 0.5, 0.31, 0.4, 0, 105)
    for _ in range(60):  # folded cortex, seen by MRI only
        angle = random.uniform(0, 2 * np.pi)
        x, y = 0.5 + 0.27 * np.cos(angle), 0.5 + 0.35 * np.sin(angle)
        ellipse(mri, x, y, random.uniform(0.01, 0.03), random.uniform(0.006, 0.014), np.degrees(angle), 165)
    ellipse(mri, 0.5, 0.5, 0.2, 0.28, 0, 140)
    for offset, angle in ((-0.055, 14), (0.055, -14)):  # ventricles
        ellipse(mri, 0.5 + offset, 0.46, 0.028, 0.1, angle, 32)
        ellipse(ct, 0.5 + offset, 0.46, 0.028, 0.1, angle, 40)
    ellipse(mri, 0.63, 0.6, 0.05, 0.04, 30, 225)  # a lesion in MRI, its calcification in CT
    ellipse(ct, 0.64, 0.605, 0.014, 0.011, 30, 235)
    head = mri > 0
    mri += 7 * _texture(random, side, side)
    ct += 3 * _texture(random, side, side)
    ct, mri = (np.asarray(cv2.GaussianBlur(image, (0, 0), 0.9), np.float32) for image in (ct, mri))
    outside = cv2.dilate(head.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0
    ct[outside] = mri[outside] = 0
    return _bytes(ct), _bytes(mri)


SAMPLES: dict[str, Callable[[], tuple[NDArray[np.uint8], Gray]]] = {
    "night_street": night_street,
    "head_phantom": head_phantom,
}


def write_samples(folder: Path) -> list[Pair]:
    """Write every sample as ``folder/first/NAME.png`` and ``folder/second/NAME.png`` and return the pairs."""
    pairs = []
    for name, draw in SAMPLES.items():
        paths = []
        for part, image in zip(("first", "second"), draw(), strict=True):
            create_folder(folder / part)
            paths.append(folder / part / f"{name}.png")
            write_image(paths[-1], image)
        pairs.append(Pair(name=name, first=paths[0], second=paths[1]))
    return pairs


def write_night_streets(folder: Path, size: tuple[int, int], count: int) -> tuple[Path, Path]:
    """Write ``count`` different night streets as ``folder/visible/N.png`` and ``folder/infrared/N.png``.

    The two folders come back.
    """
    sides = folder / "visible", folder / "infrared"
    for side in sides:
        create_folder(side)
    for number in range(count):
        for side, image in zip(sides, night_street(*size, seed=number), strict=True):
            write_image(side / f"{number:03}.png", image)
    return sides


def _rgb(weights: list[float]) -> NDArray[np.float32]:
    return np.array(weights, np.float32)


def _texture(random: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Return smooth noise of unit size, (H, W)."""
    import cv2

    coarse = random.standard_normal((height // 6 + 1, width // 6 + 1)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
