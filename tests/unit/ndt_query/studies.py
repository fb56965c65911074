"""Simulated studies of interventions, of the shape that capture.run_interventions gives, with planted effects."""

from __future__ import annotations

import numpy as np
import xarray as xr

EVERY, LAST = 5, 60
ARMS = ("normal", "frozen", "perturbed")


def study(
    rng: np.random.Generator,
    *,
    n_seeds: int = 3,
    at_jumps: float = 0.0,
    at_controls: float = 0.0,
    between_seeds: float = 0.01,
    between_moments: float = 0.0,
    moments: list[tuple[int, str]] | None = None,
    n_layers: int = 2,
) -> xr.Dataset:
    """Final accuracy, and all that is measured from the moment on, lose so much in each arm that is not normal."""
    moments = moments or [(11, "jump"), (21, "control"), (31, "jump"), (41, "control")]
    step = np.arange(min(step for step, _ in moments) - 1, LAST + 1, EVERY)
    shape = (n_seeds, len(moments), len(ARMS))
    lost = np.zeros(shape)
    lost[:, :, 1:] = rng.normal(0, between_seeds, (n_seeds, 1, 2)) + rng.normal(0, between_moments, (*shape[:2], 2))
    # What a seed loses differs between jumps and controls too, or the difference would not vary.
    for role, planted in (("jump", at_jumps), ("control", at_controls)):
        here = [m for m, (_, name) in enumerate(moments) if name == role]
        lost[:, here, 1:] += planted + rng.normal(0, between_seeds, (n_seeds, 1, 2))
    running = np.full((*shape, len(step)), np.nan)
    for m, (first, _) in enumerate(moments):
        there = step >= first - 1
        running[:, m][..., there] = 0.8 - lost[:, m][..., None] * (step[there] > first - 1)
    wide = running[..., None] * np.arange(10.0, 10.0 + n_layers)
    return xr.Dataset(
        {
            "final_accuracy": (("seed", "moment", "arm"), 0.9 - lost),
            "validation_accuracy": (("seed", "moment", "arm", "step"), running),
            "participation_ratio": (("seed", "moment", "arm", "step", "layer"), wide),
            "stable_rank": (("seed", "moment", "arm", "step", "layer"), wide / 2),
        },
        {
            "seed": np.arange(n_seeds),
            "arm": np.array(ARMS, object),
            "step": step,
            "layer": np.array([f"relu{n}" for n in range(1, n_layers + 1)], object),
            "moment_step": (("seed", "moment"), np.array([[step for step, _ in moments]] * n_seeds)),
            "role": (("seed", "moment"), np.array([[role for _, role in moments]] * n_seeds, object)),
        },
        {"what": "a simulated study", "every": EVERY, "n_steps": 10},
    )
