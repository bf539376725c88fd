"""What each metric's name means: the function, the better direction, the range, the definition in a line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

from upfusion.metrics.contrast import average_gradient, spatial_frequency, standard_deviation
from upfusion.metrics.correlation import correlation_coefficient, scd
from upfusion.metrics.difference import HIGHEST_PSNR_DB, mse, psnr
from upfusion.metrics.edges import QABF_OF_PERFECT_TRANSFER, qabf
from upfusion.metrics.fmi import fmi
from upfusion.metrics.information import entropy, mutual_information, normalised_mutual_information, q_ncie
from upfusion.metrics.phase import q_p
from upfusion.metrics.sources import Image, Sources
from upfusion.metrics.ssim import ms_ssim, ssim, ssim_range255
from upfusion.metrics.vif import vif


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. Its value is finite for every image; the function's docstring says what edge cases give."""

    function: Callable[[Sources, Image], float]
    better: Literal["higher", "lower"]
    lowest: float
    highest: float  # inf where there is no sharp bound
    definition: str


METRICS: dict[str, Metric] = {
    # The paper's five, in its order.
    "Q_NCIE": Metric(
        function=q_ncie,
        better="higher",
        lowest=1 - math.log(3, 256),
        highest=1.0,
        definition="nonlinear correlation information entropy of A, B and F",
    ),
    "Q_P": Metric(
        function=q_p,
        better="higher",
        lowest=-1.0,
        highest=1.0,
        definition="transfer of phase congruency and its moments; mostly 0.2 to 0.7",
    ),
    "VIF": Metric(
        function=vif,
        better="higher",
        lowest=0.0,
        highest=math.inf,
        definition="visual information fidelity, pixel domain, mean over the two sources",
    ),
    "SSIM": Metric(
        function=ssim,
        better="higher",
        lowest=-1.0,
        highest=1.0,
        definition="structural similarity, 7x7 windows, dynamic range 2, mean over the two sources",
    ),
    "Qabf": Metric(
        function=qabf,
        better="higher",
        lowest=0.0,
        highest=QABF_OF_PERFECT_TRANSFER,
        definition="transfer of edge strength and direction (Xydeas-Petrovic)",
    ),
    # The customary others.
    "EN": Metric(
        function=entropy, better="higher", lowest=0.0, highest=8.0, definition="entropy of the fused image, bits"
    ),
    "SD": Metric(
        function=standard_deviation,
        better="higher",
        lowest=0.0,
        highest=127.5,
        definition="standard deviation of the fused image, grey levels",
    ),
    "SF": Metric(
        function=spatial_frequency,
        better="higher",
        lowest=0.0,
        highest=255 * math.sqrt(2),
        definition="root mean square difference of neighbouring pixels of the fused image, grey levels",
    ),
    "AG": Metric(
        function=average_gradient,
        better="higher",
        lowest=0.0,
        highest=255.0,
        definition="mean gradient of the fused image, grey levels per pixel",
    ),
    "MI": Metric(
        function=mutual_information,
        better="higher",
        lowest=0.0,
        highest=2 * math.log(256),
        definition="mutual information of F with A plus with B, nats",
    ),
    "NMI": Metric(
        function=normalised_mutual_information,
        better="higher",
        lowest=0.0,
        highest=2.0,
        definition="mutual information relative to the entropies (Hossny), sum over the two sources",
    ),
    "CC": Metric(
        function=correlation_coefficient,
        better="higher",
        lowest=-1.0,
        highest=1.0,
        definition="Pearson's correlation, mean over the two sources",
    ),
    "SCD": Metric(
        function=scd,
        better="higher",
        lowest=-2.0,
        highest=2.0,
        definition="sum of the correlations of differences, r(F - B, A) + r(F - A, B)",
    ),
    "MSE": Metric(
        function=mse,
        better="lower",
        lowest=0.0,
        highest=255.0**2,
        definition="mean squared difference, mean over the two sources",
    ),
    "PSNR": Metric(
        function=psnr,
        better="higher",
        lowest=-20 * math.log10(255),
        highest=HIGHEST_PSNR_DB,
        definition="peak of F squared over MSE, dB",
    ),
    "MS-SSIM": Metric(
        function=ms_ssim,
        better="higher",
        lowest=0.0,
        highest=1.0,
        definition="multi-scale structural similarity, dynamic range 255, mean over the two sources",
    ),
    "FMI": Metric(
        function=fmi,
        better="higher",
        lowest=0.0,
        highest=1.0,
        definition="mutual information of gradient features in 3x3 windows, mean over the two sources",
    ),
    "SSIM_mean_range255": Metric(
        function=ssim_range255,
        better="higher",
        lowest=-1.0,
        highest=1.0,
        definition="SSIM with dynamic range 255: far less sensitive to a grey level on black",
    ),
}

PAPER_METRICS = ("Q_NCIE", "Q_P", "VIF", "SSIM", "Qabf")  # UP-Fusion, Tables 1 and 2, in this order

ALIASES = {"Q_MI": "NMI"}  # the name that Liu et al.'s toolbox gives the same quantity
