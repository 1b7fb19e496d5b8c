"""Which GPUs a benchmark may use: those that its own process was given."""

from __future__ import annotations

import os


def visible(count: int) -> list[str]:
    """The first `count` of them, as CUDA_VISIBLE_DEVICES names them to a child; 0, 1, ... where it is not set."""
    told = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    return (told or list(map(str, range(count))))[:count]
