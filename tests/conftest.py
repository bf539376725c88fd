"""Fixtures that several parts of the tests need."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Processes that tests start import the installed package: the checkout in the working folder would hide its mapped
# parts (upfusion.runtime and its like) on an ordinary install.
os.environ["PYTHONSAFEPATH"] = "1"

# Background shells and nohup start their children with signals ignored, and so would the commands that tests stop.
for _number in (signal.SIGINT, getattr(signal, "SIGHUP", None)):
    if _number is not None and signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

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
