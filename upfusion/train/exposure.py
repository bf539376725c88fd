"""Crops as other exposures would have given them: dusk, night, and thermal images of cold scenes.

All functions take planes (C, S, S) in 0..1 and a generator that decides everything, and return whole grey levels over
255, float32, as a camera would have written them.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Planes = NDArray[np.float32]
Levels = NDArray[np.float64]


def darkened(image: Planes, random: np.random.Generator) -> Planes:
    """Return the image with a gamma of 0.8 to 2.5 and a gain of 0.4 to 1."""
    return _whole(255 * (image ** random.uniform(0.8, 2.5) * random.uniform(0.4, 1.0)))


def dimmed(image: Planes, random: np.random.Generator) -> Planes:
    """Return the image as a camera gives it that has little light, or a thermal one that has little warmth to see.

    Most of it keeps a twentieth to a third of its range. What is brightest (a lamp, a warm body) mostly stays bright,
    since cameras expose for it, and a lamp may light up a spot. Blur, noise and the traces of JPEG come as they come
    at night. In such images one level more or less is a contour gained or lost, which crops of full range do not teach.
    """
    levels = 255 * _underexposed(image ** random.uniform(0.8, 1.6), random) + random.uniform(0, 5)
    if random.random() < 0.3:
        levels = _blurred(levels, random.uniform(0.5, 1.3))
    levels = levels + _noise(image.shape[1:], random)
    if random.random() < 0.3:
        levels = _compressed(levels, random)
    return _whole(levels)


def dark_pair(visible: Planes, infrared: Planes, random: np.random.Generator) -> tuple[Planes, Planes]:
    """Return a pair (3, S, S) and (1, S, S) of which one image is dimmed or both.

    Both (a night) in 55 % of the pairs, the second alone (a day, thermal images of little contrast) in 35 %.
    """
    kind = random.random()
    if kind < 0.9:
        infrared = dimmed(infrared, random)
    if not 0.55 <= kind < 0.9:
        visible = dimmed(visible, random)
    return visible, infrared


def _underexposed(image: Planes, random: np.random.Generator) -> Levels:
    """Return planes in 0..1 of which most is dark."""
    gain = np.exp(random.uniform(np.log(0.05), np.log(0.35)))
    shown = gain * image
    if random.random() < 0.6:
        luma = image.mean(0)
        floor = np.quantile(luma, random.uniform(0.8, 0.995))
        above = np.clip((image - floor) / (max(luma.max(), floor + 0.05) - floor), 0, 1)
        shown = shown + (1 - gain) * random.uniform(0.3, 1.0) * above ** random.uniform(0.7, 2.0)
    if random.random() < 0.2:
        lit = _spots(image.shape[1:], random)
        shown = (1 - lit) * shown + lit * image
    return shown


def _spots(shape: tuple[int, ...], random: np.random.Generator) -> Levels:
    """Return how much of its light each pixel of (S, S) has under one to three lamps, 0..1."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    lit = np.zeros(shape)
    for _ in range(random.integers(1, 4)):
        row, column, radius = random.uniform(0, shape[0]), random.uniform(0, shape[1]), random.uniform(4, 30)
        spot = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius**2))
        lit = np.maximum(lit, random.uniform(0.4, 1) * spot)
    return lit


def _noise(shape: tuple[int, ...], random: np.random.Generator) -> Levels:
    """Return noise in grey levels, the same for all planes: of pixels, partly correlated, and of rows."""
    noise = np.zeros(shape)
    if random.random() < 0.7:
        noise = random.normal(0, random.uniform(0.2, 1.0), shape)
        if random.random() < 0.4:
            noise = 1.7 * _blurred(noise[None], random.uniform(0.5, 1.0))[0]
    if random.random() < 0.3:
        noise = noise + random.normal(0, random.uniform(0.2, 0.7), (shape[0], 1))
    return noise


def _compressed(levels: Levels, random: np.random.Generator) -> Levels:
    """Return the levels after JPEG of quality 70 to 96, its blocks beginning anywhere."""
    down, right = random.integers(0, 8, 2)
    quality = int(random.uniform(70, 97))
    framed = np.pad(levels, ((0, 0), (down, 0), (right, 0)), mode="edge")
    stored = np.ascontiguousarray(np.rint(framed).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)[:, :, ::-1])
    _, file = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, quality])
    read = np.asarray(cv2.imdecode(file, cv2.IMREAD_UNCHANGED), np.float64).reshape(stored.shape)
    return read[down:, right:, ::-1].transpose(2, 0, 1)


def _blurred(planes: Levels, sigma: float) -> Levels:
    return np.stack([np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma), np.float64) for plane in planes])


def _whole(levels: NDArray[np.floating]) -> Planes:
    return (np.rint(levels).clip(0, 255) / 255).astype(np.float32)
