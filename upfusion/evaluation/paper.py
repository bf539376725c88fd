"""The numbers the paper prints for UP-Fusion: data to stand beside measurements, never measured here.

Source: UP-Fusion, AAAI 2026 (arXiv 2511.12432), Table 1 (MSRS, LLVIP, M3FD, Harvard) and Table 2 (GFP-PC).
They are means over the full public test sets; subsets of these, or other crops, give other means.
"""

from __future__ import annotations

PAPER_METHOD = "UP-Fusion (paper)"
PAPER_SOURCE = "UP-Fusion, AAAI 2026, arXiv 2511.12432"

# Dataset -> (table, values under the metric names of upfusion.metrics).
PAPER_VALUES: dict[str, tuple[str, dict[str, float]]] = {
    "MSRS": ("Table 1", {"Q_NCIE": 0.8167, "Q_P": 0.5671, "VIF": 0.4587, "SSIM": 0.5074, "Qabf": 0.6859}),
    "LLVIP": ("Table 1", {"Q_NCIE": 0.8092, "Q_P": 0.5042, "VIF": 0.3817, "SSIM": 0.4636, "Qabf": 0.6864}),
    "M3FD": ("Table 1", {"Q_NCIE": 0.8119, "Q_P": 0.5190, "VIF": 0.4582, "SSIM": 0.5163, "Qabf": 0.6275}),
    "Harvard": ("Table 1", {"Q_NCIE": 0.8074, "Q_P": 0.5665, "VIF": 0.3190, "SSIM": 0.3639, "Qabf": 0.6814}),
    "GFP-PC": ("Table 2", {"Q_NCIE": 0.8170, "Q_P": 0.4826, "VIF": 0.3193, "SSIM": 0.3339, "Qabf": 0.5914}),
}
