"""Fixtures that several parts of the tests need."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Processes that tests start import the installed package: the checkout in the working folder would hide its mapped
# parts (upfusion.runtime and its like) on an ordinary install.
os.environ["PYTHONSAFEPATH"] = "1"

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the checkout: golden numbers, image pairs, typings."""
    if not SHARED.is_dir():
        pytest.skip("reference data (../shared) is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """The folder of golden numbers; its scripts are importable while the tests run."""
    folder = shared / "golden"
    sys.path.insert(0, str(folder))
    return folder


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Undo what a command of the test did to the log level: the next test may look for an INFO line."""
    logger = logging.getLogger("upfusion")
    level = logger.level
    yield
    logger.setLevel(level)
