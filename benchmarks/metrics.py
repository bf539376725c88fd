"""Time the paper's metrics beside a plain formulation with ``scipy.signal.convolve2d``, in one run.

    python -m benchmarks.metrics                 # the 480x640 golden case of ../shared, or a generated triple
    python -m benchmarks.metrics --images A.png B.png F.png

Both run on one thread on the same images, interleaved, and must agree. "Cold" computes everything, the phase
congruency filters of this size included; "kept" is a further fused image of the same two sources.
The best of the repeats is given: other load on the machine only ever adds. Process CPU time stands beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from scipy.signal import convolve2d

from benchmarks.circumstances import circumstances
from upfusion.bench.report import write_record
from upfusion.metrics import Sources, evaluate, evaluate_sources
from upfusion.metrics.phase_congruency import filter_bank

ROOT = Path(__file__).resolve().parents[1]
GOLDEN_CASE = "golden/metrics/cases/msrs_00004N_laplacian"
THREE = ("VIF", "SSIM", "Qabf")
AGREEMENT = 1e-6  # relative; the golden files' own tolerance for VIF, the loosest of the four here


def plain_vif(a: np.ndarray, b: np.ndarray, f: np.ndarray) -> float:
    return (_plain_vifp(a, f) + _plain_vifp(b, f)) / 2


def _plain_vifp(reference: np.ndarray, distorted: np.ndarray) -> float:
    arrived = available = 0.0
    for size in (17, 9, 5, 3):
        window = _gaussian(size, size / 5)
        if size < 17:
            reference = convolve2d(reference, window, "valid")[::2, ::2]
            distorted = convolve2d(distorted, window, "valid")[::2, ::2]
        m1, m2 = convolve2d(reference, window, "valid"), convolve2d(distorted, window, "valid")
        v1 = np.maximum(convolve2d(reference**2, window, "valid") - m1**2, 0)
        v2 = np.maximum(convolve2d(distorted**2, window, "valid") - m2**2, 0)
        v12 = convolve2d(reference * distorted, window, "valid") - m1 * m2
        g = v12 / (v1 + 1e-10)
        sv = v2 - g * v12
        g[v1 < 1e-10], sv[v1 < 1e-10] = 0, v2[v1 < 1e-10]
        v1[v1 < 1e-10] = 0
        g[v2 < 1e-10], sv[v2 < 1e-10] = 0, 0
        sv[g < 0], g[g < 0] = v2[g < 0], 0
        sv[sv <= 1e-10] = 1e-10
        arrived += np.sum(np.log10(1 + g**2 * v1 / (sv + 2)))
        available += np.sum(np.log10(1 + v1 / 2))
    return float(arrived / available)


def plain_ssim(a: np.ndarray, b: np.ndarray, f: np.ndarray) -> float:
    window = np.full((7, 7), 1 / 49)
    values = []
    for x in (a, b):
        m1, m2 = convolve2d(x, window, "valid"), convolve2d(f, window, "valid")
        v1 = 49 / 48 * (convolve2d(x * x, window, "valid") - m1 * m1)
        v2 = 49 / 48 * (convolve2d(f * f, window, "valid") - m2 * m2)
        v12 = 49 / 48 * (convolve2d(x * f, window, "valid") - m1 * m2)
        ratio = (2 * m1 * m2 + 4e-4) * (2 * v12 + 3.6e-3) / ((m1**2 + m2**2 + 4e-4) * (v1 + v2 + 3.6e-3))
        values.append(np.mean(ratio))
    return float(np.mean(values))


def plain_qabf(a: np.ndarray, b: np.ndarray, f: np.ndarray) -> float:
    kernel_x = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernel_y = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])
    strengths, angles = [], []
    for image in (a, b, f):
        sx, sy = convolve2d(image, kernel_x, "same"), convolve2d(image, kernel_y, "same")
        strengths.append(np.sqrt(sx**2 + sy**2))
        with np.errstate(divide="ignore", invalid="ignore"):
            angles.append(np.where(sx == 0, math.pi / 2, np.arctan(sy / sx)))
    total, kept = 0.0, 0.0
    for g, angle in zip(strengths[:2], angles[:2], strict=True):
        gf = strengths[2]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(g > gf, gf / g, np.where(g == gf, gf, g / gf))
        agreement = 1 - np.abs(angle - angles[2]) / (math.pi / 2)
        quality = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5))) * 0.9879 / (1 + np.exp(-22 * (agreement - 0.8)))
        kept += np.sum(quality * g)
        total += np.sum(g)
    return float(kept / total)


def plain_q_p(a: np.ndarray, b: np.ndarray, f: np.ndarray) -> float:
    of_a, of_b, of_f = (_plain_phase_maps(image) for image in (a, b, f))
    of_s = [np.where(of_a[0] > of_b[0], x, y) for x, y in zip(of_a, of_b, strict=True)]
    masks = [maps[0] > 0.1 for maps in (of_a, of_b, of_s)]
    window = _gaussian(11, 1.5)
    value = 1.0
    for kind in range(3):
        zf = of_f[kind]
        best = np.full(zf.shape, -np.inf)
        for maps, mask in zip((of_a, of_b, of_s), masks, strict=True):
            z = maps[kind] * mask
            m1, m2 = convolve2d(z, window, "same"), convolve2d(zf, window, "same")
            v1 = convolve2d(z * z, window, "same") - m1 * m1
            v2 = convolve2d(zf * zf, window, "same") - m2 * m2
            v12 = convolve2d(z * zf, window, "same") - m1 * m2
            best = np.maximum(best, (v12 + 1e-4) / (np.sqrt(np.abs(v1 * v2)) + 1e-4) * mask)
        value *= np.sum(best) / np.count_nonzero(masks[2])
    return float(value)


def _plain_phase_maps(image: np.ndarray) -> list[np.ndarray]:
    """Phase congruency with a complex transform per filter; even sizes only."""
    height, width = image.shape
    x, y = np.meshgrid((np.arange(width) - width // 2) / width, (np.arange(height) - height // 2) / height)
    rho, theta = np.sqrt(x**2 + y**2), np.arctan2(-y, x)
    low_pass = np.fft.fftshift(1 / (1 + (rho / 0.45) ** 30))
    rho[height // 2, width // 2] = 1
    rho, theta = np.fft.ifftshift(rho), np.fft.ifftshift(theta)
    gabor = [
        np.exp(-(np.log(rho * 3 * 2.1**s) ** 2) / (2 * math.log(0.55) ** 2)) * low_pass * (rho < 1) for s in range(4)
    ]
    spectrum = np.fft.fft2(image)
    energies, amplitudes = np.zeros(image.shape), np.full(image.shape, 1e-4)
    cx2, cy2, cxy = np.zeros(image.shape), np.zeros(image.shape), np.zeros(image.shape)
    for orientation in range(6):
        angle = orientation * math.pi / 6
        ds = np.sin(theta) * math.cos(angle) - np.cos(theta) * math.sin(angle)
        dc = np.cos(theta) * math.cos(angle) + np.sin(theta) * math.sin(angle)
        angular = np.exp(-(np.arctan2(ds, dc) ** 2) / (2 * (math.pi / 7.2) ** 2))
        filters = [g * angular for g in gabor]
        response = [np.fft.ifft2(spectrum * each) for each in filters]
        amplitude = [np.abs(r) for r in response]
        total = sum(amplitude)
        even, odd = sum(r.real for r in response), sum(r.imag for r in response)
        norm = np.sqrt(even**2 + odd**2) + 1e-4
        even, odd = even / norm, odd / norm
        energy = sum(r.real * even + r.imag * odd - np.abs(r.real * odd - r.imag * even) for r in response)
        power = np.median(amplitude[0] ** 2) / math.log(2) / np.sum(filters[0] ** 2)
        spatial = sum(np.fft.ifft2(each).real for each in filters) * math.sqrt(height * width)
        tau = math.sqrt(power * np.sum(spatial**2))
        threshold = tau * (math.sqrt(math.pi / 2) + 2 * math.sqrt(2 - math.pi / 2)) / 1.7
        weight = 1 / (1 + np.exp(10 * (0.5 - total / (np.maximum.reduce(amplitude) + 1e-4) / 4)))
        energy = weight * np.maximum(energy - threshold, 0)
        energies += energy
        amplitudes += total
        square = (energy / total) ** 2
        cx2 += square * math.cos(angle) ** 2 / 3
        cy2 += square * math.sin(angle) ** 2 / 3
        cxy += square * math.cos(angle) * math.sin(angle) / 6
    spread = np.sqrt(cxy**2 + (cx2 - cy2) ** 2) + 1e-4
    return [energies / amplitudes, (cy2 + cx2 + spread) / 2, (cy2 + cx2 - spread) / 2]


def _gaussian(size: int, sigma: float) -> np.ndarray:
    offset = np.arange(size) - size // 2
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * sigma**2))
    return window / window.sum()


PLAIN = {"VIF": plain_vif, "SSIM": plain_ssim, "Qabf": plain_qabf, "Q_P": plain_q_p}


def best_of(repeats: int, work: Callable[[], object]) -> dict[str, float]:
    """Return the best wall and the best CPU time of the repeats, after one run to warm up."""
    work()
    wall, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {"wall_ms": round(1e3 * min(wall), 1), "cpu_ms": round(1e3 * min(cpu), 1), "repeats": repeats}


def generated(height: int = 480, width: int = 640) -> list[np.ndarray]:
    """Return two smooth random scenes with edges, and their average."""
    rng = np.random.default_rng(0)
    scenes = []
    for sigma in (3, 9):
        field = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), sigma)
        steps = np.where(field > np.median(field), 60, 0) + 120 * (field - field.min()) / np.ptp(field)
        scenes.append(np.clip(steps + rng.normal(0, 2, field.shape), 0, 255).astype(np.uint8))
    return [*scenes, ((scenes[0].astype(np.uint16) + scenes[1] + 1) // 2).astype(np.uint8)]


def load(paths: list[str] | None) -> tuple[list[np.ndarray], str]:
    golden = ROOT.parent / "shared" / GOLDEN_CASE
    if paths is None and golden.is_dir():
        paths, source = [str(golden / f"{name}.png") for name in "ABF"], f"../shared/{GOLDEN_CASE}"
    elif paths is None:
        return generated(), "generated (seed 0)"
    else:
        source = " ".join(paths)
    images = [cv2.imread(path, cv2.IMREAD_GRAYSCALE) for path in paths]
    if any(image is None for image in images):
        sys.exit(f"cannot read one of {source}")
    return images, source


def measure(a: np.ndarray, b: np.ndarray, f: np.ndarray, repeats: int) -> dict[str, object]:
    def cold(names: tuple[str, ...]) -> dict[str, float]:
        filter_bank.cache_clear()
        return evaluate(a, b, f, names)

    floats = [image.astype(np.float64) for image in (a, b, f)]
    ours = cold(tuple(PLAIN))
    plain = {name: function(*floats) for name, function in PLAIN.items()}
    apart = {name: abs(ours[name] - plain[name]) / abs(plain[name]) for name in PLAIN}
    if max(apart.values()) > AGREEMENT:
        sys.exit(f"the two formulations differ by {apart} (relative)")
    pair = Sources(a, b)
    times = {
        "VIF+SSIM+Qabf cold": best_of(repeats, lambda: cold(THREE)),
        "VIF+SSIM+Qabf kept": best_of(repeats, lambda: evaluate_sources(pair, f, THREE)),
        "VIF+SSIM+Qabf plain": best_of(1, lambda: [PLAIN[name](*floats) for name in THREE]),
        "Q_P cold": best_of(repeats, lambda: cold(("Q_P",))),
        "Q_P kept": best_of(repeats, lambda: evaluate_sources(pair, f, ["Q_P"])),
        "Q_P plain": best_of(1, lambda: plain_q_p(*floats)),
    }
    speed_up = {
        f"{group} {state}": round(times[f"{group} plain"]["wall_ms"] / times[f"{group} {state}"]["wall_ms"], 1)
        for group in ("VIF+SSIM+Qabf", "Q_P")
        for state in ("cold", "kept")
    }
    return {"times": times, "speed_up_over_plain": speed_up, "relative_difference_to_plain": apart, "values": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs=3, metavar=("FIRST", "SECOND", "FUSED"), help="gray images of one even size")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "metrics.json")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    images, source = load(arguments.images)
    result = {
        "what": "metrics of one triple on one thread; best of the repeats",
        **circumstances("metrics"),
        "images": source,
        "size": list(images[0].shape),
        **measure(*images, arguments.repeats),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_record(result, arguments.output)
    print(json.dumps(result["times"], indent=1))
    print(json.dumps(result["speed_up_over_plain"]))


if __name__ == "__main__":
    main()
