"""Where the shipped checkpoint lies."""

from pathlib import Path

TINY = Path(__file__).with_name("tiny.safetensors")
"""The ``tiny`` preset; its card is MODEL_CARD.md beside it."""
