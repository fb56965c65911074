"""Attention that tests ask about: random, and planted."""

from __future__ import annotations

import numpy as np
import xarray as xr

DIMS = ("checkpoint", "example", "head", "query", "key")
STEPS = (0, 10)


def patterns(values, steps=STEPS, labels=None):
    """(checkpoint, example, head, query, key) as the attention of a layer."""
    n = values.shape[1]
    coords = {
        "checkpoint": list(steps[: len(values)]),
        "example": 100 + np.arange(n),
        "head": np.arange(values.shape[2]),
    }
    found = xr.DataArray(values, coords, DIMS, name="attentions")
    return found if labels is None else found.assign_coords(label=("example", labels))


def noise(rng, n=60, heads=4, tokens=9, steps=2, dtype=np.float32, keys=None):
    """Rows drawn alike for all heads, examples and checkpoints."""
    return rng.dirichlet(np.full(keys or tokens, 0.5), (steps, n, heads, tokens)).astype(dtype)
