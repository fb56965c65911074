"""Products of activations on the model's device, on whichever side is smaller, and the measures of their spectrum.

Samples are examples: units and positions flattened into features, or units averaged over positions. With fewer
features than samples the scatter matrix of features is made, else the Gram matrix of samples; both have the same
eigenvalues. The products are summed in float64, of samples about their mean, one stripe of features after the other,
so that no copy of a large layer is made. The matrix, not the layer, goes to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from ndt_store.dims import EXAMPLE, UNIT
from ndt_store.views.blocks import spans
from ndt_store.views.samples import eigenvalues, is_rounding
from ndt_store.views.spectrum import measures

__all__ = ["POSITIONS", "measured", "sample_rows", "second_order"]

POSITIONS: Final = ("flatten", "mean")
"""What becomes of conv positions and tokens."""

_STRIPE_NBYTES: Final = 4 << 20
"""Size of the float64 temporaries: what stays in the cache between centring and multiplying."""

_PANEL: Final = 64
"""Rows of one matrix product: half a panel's square above the diagonal is what the triangle costs too much."""

_WHOLE: Final = ("energy_dims_90", "energy_dims_95")
"""Measures that count components."""


def sample_rows(tensor: torch.Tensor, dims: Sequence[str], positions: str) -> torch.Tensor:
    """Arrange activations as samples (example, feature), without a copy where there need be none.

    Parameters
    ----------
    tensor : torch.Tensor
        Example first.
    dims : sequence of str
        Names of its axes.
    positions : {"flatten", "mean"}
        Features are units at positions, or the means of units over positions, in float64.
    """
    places = [axis for axis, dim in enumerate(dims) if dim not in (EXAMPLE, UNIT)]
    # Apple's GPUs have no float64.
    wide = tensor.cpu() if tensor.device.type == "mps" else tensor
    if positions == "mean" and places:
        return wide.mean(dim=places, dtype=torch.float64)
    return wide.reshape(len(wide), -1)


def second_order(samples: torch.Tensor, centre: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiply samples (example, feature) with each other.

    Returns
    -------
    matrix : torch.Tensor
        float64 of the smaller side, (feature, feature) or (example, example); its lower triangle, beyond which nothing
        has a meaning.
    square : torch.Tensor
        Squared length of the first sample, as it is.

    Notes
    -----
    Costs somewhat over ``n d min(n, d) / 2`` products in float64.
    """
    n, d = samples.shape
    side = min(n, d)
    matrix = samples.new_zeros((side, side), dtype=torch.float64)
    square = samples.new_zeros((), dtype=torch.float64)
    for stripe in spans(d, d if d < n else max(1, _STRIPE_NBYTES // (8 * n))):
        y = samples[:, stripe].to(torch.float64, copy=True)
        square += y[0].square().sum()
        if centre:
            y -= y.mean(dim=0)
        left = y.T if d < n else y
        for rows in spans(side, _PANEL):
            matrix[rows, : rows.stop].addmm_(left[rows], left[: rows.stop].T)
    return matrix, square


def measured(matrix: torch.Tensor, square: torch.Tensor, n: int, centre: bool) -> dict[str, float]:
    """Measure the dimension of what `second_order` made of `n` samples, all ways at once.

    All NaN where samples hold a NaN, or differ by no more than rounding.
    """
    host = matrix.cpu().numpy()
    if centre and is_rounding(float(np.trace(host)), n, float(square)):
        host = np.zeros_like(host)
    found = measures(eigenvalues(host))
    return {name: float(np.ceil(value)) if name in _WHOLE else value for name, value in found.items()}
