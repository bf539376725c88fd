"""The scripts of ``benchmarks/`` as a package, without the checkout on the path: it would hide the installed parts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

if "benchmarks" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        "benchmarks", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert _spec is not None
    sys.modules["benchmarks"] = importlib.util.module_from_spec(_spec)
