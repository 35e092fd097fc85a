"""Whether this process is one of several."""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether a launcher, torchrun or this package's own, has started this process as one of several."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= set(os.environ) and int(os.environ["WORLD_SIZE"]) > 1
