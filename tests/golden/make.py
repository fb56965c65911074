"""Made the stores beside this file; run once for each format version, never again for an old one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ndt_store.codecs import PROFILES
from ndt_store.testing import simulate_store

HERE = Path(__file__).parent

if __name__ == "__main__":
    for codec in PROFILES:
        made = simulate_store(
            HERE / f"format-1-{codec}.zarr",
            checkpoints=(0, 7),
            n_examples=5,
            n_classes=2,
            layers={"conv": (2, 3, 3), "fc": (4,)},
            attention={"attn": (2, 3)},
            codec=codec,
            block_nbytes=200,
        )
    numeric = {path: values for path, values in made.arrays.items() if values.dtype.kind in "fiu"}
    np.savez(HERE / "format-1.npz", **{path.replace("/", "|"): values for path, values in numeric.items()})
