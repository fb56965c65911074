"""Jumps of a series measured while training: found against a null, with their position and size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import ThreadpoolController

from ndt_query.inference import fdr
from ndt_query.inputs import require_count
from ndt_query.kernels.stepsearch import Level, Search, Step
from ndt_query.layers import described
from ndt_query.tracked import measured, require_finite, training_steps, varies
from ndt_store.dims import LAYER
from ndt_store.errors import InvalidInputError

__all__ = ["DRAW", "JUMP", "MEASURED_LAYER", "MEASUREMENT", "detect_jumps"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

JUMP: Final = "jump"
DRAW: Final = "draw"
MEASUREMENT: Final = "measurement"
MEASURED_LAYER: Final = "measured_layer"

_OWNER: Final = "position of the layer"

_MEANING: Final = {
    "step": "training step of the first measurement after the jump",
    "index": "position of that measurement in the series",
    "size": "change of level, in units of the measure",
    "size_error": "standard error of the size",
    "size_in_noise": "size over the standard deviation of the noise there",
    "low": "first step of the positions that hold 95% of the likelihood",
    "high": "last step of the positions that hold 95% of the likelihood",
    "strength": "square root of twice the log likelihood ratio of the jump against none",
    "p_value": "of the strength, among simulated series without the jump",
    "q_value": "false discovery rate over every step of every layer that was tested",
    "null_strength": "strongest step of each simulated series without the jump",
    "next_step": "training step of the strongest change that is no jump",
    "next_strength": "its strength",
    "next_p_value": "its p value",
    "next_null_strength": "strongest step of each simulated series beside the jumps",
    "series": "what was measured",
    "trend": "the smooth curve, which has no jumps",
    "level": "the smooth curve with the jumps",
    "level_error": "standard error of the level",
    "noise": "standard deviation of the noise",
}


def detect_jumps(
    series: ArrayLike | xr.DataArray | xr.Dataset,
    steps: ArrayLike | None = None,
    alpha: float = 0.05,
    *,
    measure: str = "participation_ratio",
    n_null: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Find jumps: changes of level within one or two measurements that are not part of a smooth curve.

    Parameters
    ----------
    series : array_like (step,), DataArray (step[, layer]) or Dataset
        What was measured, at least 30 times. Of a Dataset, as `ndt_store.open_training` gives one, `measure` is taken,
        of all of its layers.
    steps : array_like of int (step,), optional
        Training steps of the measurements, increasing. By default the coordinate ``step`` of a DataArray or Dataset.
    alpha : float
        The level: of the tests and of the false discovery rate.
    measure : str
        Variable of a Dataset.
    n_null : int, optional
        The most series simulated for each test; the least p value is ``1 / (n_null + 1)``. By default 199, or as many
        as let the q value of one jump in one layer reach half of `alpha`.
    seed : int
        Of the simulations, the same for each layer: a layer's p values do not depend on the others'.

    Returns
    -------
    Dataset
        Over ``jump``, in order of layer and position: ``step``, the training step of the first measurement after the
        jump, and its ``index`` in the series; ``size`` (after less before), ``size_error`` and ``size_in_noise``;
        ``low`` and ``high``, first and last step of the 95% interval of its position; ``strength``; ``p_value`` and
        ``q_value``; ``null_strength`` (jump, draw), NaN where sampling ended early; ``layer`` where there are several.

        Over ``measurement``, labelled by training steps, and ``measured_layer`` where there are several: ``series``,
        ``trend``, ``level`` (trend and jumps), ``level_error`` and ``noise``.

        For each layer: ``next_step``, ``next_strength``, ``next_p_value`` and ``next_null_strength`` (draw) of the
        strongest change that is no jump; its step is NaN and its strength 0 in a series that never changes.

    Raises
    ------
    InvalidInputError
        The series has a NaN or an infinite value, the steps do not increase, or a level is not possible.
    DimensionError
        There are fewer than 30 measurements, or other dimensions.
    NotFoundError
        The Dataset lacks the measure, or the array its steps.

    Notes
    -----
    The model is a smooth curve, steps, and noise. The curve is a penalised spline on an axis that is partly
    logarithmic, since curves of training are fast early and slow late. The noise is AR(1), or white noise upon a random
    walk (Romano et al. 2022), of a scale that may change over training. Smoothness and correlation are those of the
    greatest restricted likelihood, chosen anew for each position a jump may have, so that neither curve nor noise
    swallows it.

    The test statistic is the best gain in likelihood over all positions. Its null distribution comes from series that
    are simulated without the jump: the fitted curve and a block bootstrap of the innovations (Davison and Hinkley
    1997), each put through the same search. Simulation ends early where 10 series reach the gain (Besag and Clifford
    1991). Several jumps are found together and each is tested with the others in the model. The family of the false
    discovery rate (Benjamini and Hochberg 1995) is every candidate that was tested in any layer: those that were taken,
    those that were not, and in each layer the strongest change beside them. Jumps with ``q <= alpha`` are returned.

    Of series without a jump at most 5% give one at ``alpha=0.05``, with white noise, AR(1) noise of correlations up to
    0.9, exponentials, lines, waves and random walks in noise; a jump of 4 standard deviations of white noise is found
    in more than 95% of series of 400 points. The tables are in ``benchmarks/JUMPS.md``.

    Noise that changes its scale severalfold is the weak point: where it is five times louder at first, 14% of series
    without a jump give one, in the loud part.

    What it cannot tell. A change that is smooth on the scale of some measurements is curve: measure more often.
    Excursions of up to three measurements are spikes, and no jumps. A jump in the first or last three measurements
    cannot be told from an end of the curve, and one shortly after them hardly. Two jumps within three measurements
    are one. Where noise is a random walk, a jump is a step larger than its steps are. Counts such as ``energy_dims_90``
    move by whole numbers also where what they count moves smoothly: ask about a measure that is continuous.

    About 0.1 s for each layer of 400 measurements and 0.2 s more for each jump; 0.2 s once for each number of
    measurements, and again for each layer whose noise changes its scale. Time grows with the square of the number of
    measurements, and with the number of layers of a jump's test.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> values = rng.standard_normal(100) + 8.0 * (np.arange(100) >= 60)
    >>> found = detect_jumps(values, np.arange(100) * 5, n_null=99)
    >>> found["step"].values.tolist(), bool(abs(found["size"][0] - 8) < 1)
    ([300], True)
    """
    given = measured(series, measure)
    at = training_steps(given, steps)
    several = LAYER in given.dims
    layers = [str(layer) for layer in given[LAYER].values] if several else [""]
    n_null = _series_needed(alpha, n_null, len(layers))
    values = np.asarray(given.values, dtype=np.float64).reshape(len(at), len(layers))
    for column, layer in zip(values.T, layers, strict=True):
        require_finite(column, at, f"{given.name or 'The series'}{f' of layer {layer}' if several else ''}")
    with ThreadpoolController().limit(limits=1, user_api="blas"):  # the matrices are small: more threads only wait
        searches = [Search(column, alpha, n_null, seed) if varies(column) else None for column in values.T]
        variables = _assembled(values, at, searches, alpha, several)
    coords: dict[str, Any] = {MEASUREMENT: at}
    if several:
        variables[LAYER] = xr.Variable(JUMP, np.array(layers)[variables.pop(_OWNER).values])
        coords[MEASURED_LAYER] = layers
    for name, text in _MEANING.items():
        variables[name].attrs["long_name"] = text
    parameters = {"alpha": alpha, "n_null": n_null, "seed": seed, "measure": str(given.name or "")}
    what = "jumps of a series measured while training"
    return described(variables, given, what, parameters, squeeze=False, coords=coords)


def _series_needed(alpha: float, n_null: int | None, n_layers: int) -> int:
    if isinstance(alpha, bool) or not 0 < alpha < 1:
        raise InvalidInputError(f"alpha={alpha!r} is not a level: expected a number between 0 and 1.")
    if n_null is None:
        return max(199, math.ceil(4 * n_layers / alpha) - 1)
    if require_count("n_null", n_null, 1) + 1 < 2 / alpha:
        raise InvalidInputError(
            f"n_null={n_null} series are too few for alpha={alpha:g}: no jump would be significant; simulate at least "
            f"{math.ceil(2 / alpha) - 1}."
        )
    return n_null


def _assembled(
    values: F64, at: I64, searches: list[Search | None], alpha: float, several: bool
) -> dict[str, xr.Variable]:
    """Choose by the false discovery rate over all layers, fit what was chosen, and give it dimensions."""
    kept = _significant(searches, alpha)
    fits = [_fitted(search, column, jumps) for search, column, jumps in zip(searches, values.T, kept, strict=True)]
    owner = np.repeat(np.arange(len(kept)), [len(jumps) for jumps in kept])
    jumps = [jump for some in kept for jump in some]
    index = np.array([step.at for step, _ in jumps], dtype=np.int64)
    size = np.concatenate([one.sizes for one in fits])
    noise = np.stack([one.noise for one in fits], axis=1)
    nexts = [None if search is None else search.next for search in searches]
    null = _strengths([step for step, _ in jumps], nexts)
    each_jump = {
        "step": at[index],
        "index": index,
        "size": size,
        "size_error": np.concatenate([one.errors for one in fits]),
        "size_in_noise": size / noise[index, owner],
        "low": at[np.array([step.low for step, _ in jumps], dtype=np.int64)],
        "high": at[np.array([step.high for step, _ in jumps], dtype=np.int64)],
        "strength": np.sqrt([step.gain for step, _ in jumps]),
        "p_value": np.array([step.p_value for step, _ in jumps]),
        "q_value": np.array([q for _, q in jumps]),
    }
    each_measurement = {
        "series": values,
        "trend": np.stack([one.curve for one in fits], axis=1),
        "level": np.stack([one.level for one in fits], axis=1),
        "level_error": np.stack([one.error for one in fits], axis=1),
        "noise": noise,
    }
    each_layer = {
        "next_step": np.array([np.nan if one is None else float(at[one.at]) for one in nexts]),
        "next_strength": np.array([0.0 if one is None else float(np.sqrt(one.gain)) for one in nexts]),
        "next_p_value": np.array([1.0 if one is None else one.p_value for one in nexts]),
        "next_null_strength": null[len(jumps) :],
    }
    of_layer = (MEASURED_LAYER,) if several else ()
    found = {name: xr.Variable(JUMP, one) for name, one in each_jump.items()}
    found["null_strength"] = xr.Variable((JUMP, DRAW), null[: len(jumps)])
    for name, one in each_measurement.items():
        found[name] = xr.Variable((MEASUREMENT, *of_layer), one if several else one[:, 0])
    for name, one in each_layer.items():
        found[name] = xr.Variable((*of_layer, *(DRAW,) * (one.ndim - 1)), one if several else one[0])
    if several:
        found[_OWNER] = xr.Variable(JUMP, owner)
    return found


def _strengths(jumps: Sequence[Step], nexts: Sequence[Step | None]) -> F64:
    """Return the null distributions of all tests as rows, filled up with NaN."""
    draws = [np.empty(0) if step is None else np.sqrt(step.null) for step in (*jumps, *nexts)]
    rows = np.full((len(draws), max(len(some) for some in draws)), np.nan)
    for row, some in zip(rows, draws, strict=True):
        row[: len(some)] = some
    return rows


def _significant(searches: list[Search | None], alpha: float) -> list[list[tuple[Step, float]]]:
    """Return each layer's jumps with their q values: one family of every candidate that was tested in any layer."""
    tested = [[] if search is None else [one.p_value for one in search.found] for search in searches]
    others = [[] if search is None else search.left_out for search in searches]
    family = [p for some in tested for p in some] + [p for some in others for p in some]
    adjusted = iter(fdr(family).tolist() if family else [])
    taken = [[(one, next(adjusted)) for one in search.found] if search is not None else [] for search in searches]
    return [[(one, q) for one, q in some if q <= alpha] for some in taken]


def _fitted(search: Search | None, values: F64, jumps: list[tuple[Step, float]]) -> Level:
    if search is None:
        none, still = np.empty(0), np.zeros(len(values))
        return Level(none, none, values, values, still, still)
    return search.level([step.at for step, _ in jumps])
