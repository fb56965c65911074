"""Jumps of a series measured while training: found against a null, with their position and size."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import ThreadpoolController

from ndt_query.inference import fdr
from ndt_query.inputs import require_count
from ndt_query.kernels.stepsearch import Level, Search, Step
from ndt_query.layers import described
from ndt_store.dims import LAYER
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

__all__ = ["JUMP", "MEASURED_LAYER", "MEASUREMENT", "detect_jumps"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

JUMP: Final = "jump"
MEASUREMENT: Final = "measurement"
MEASURED_LAYER: Final = "measured_layer"
STEP: Final = "step"
FEWEST: Final = 30

_UNITS: Final = {
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
    n_null: int = 999,
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
    n_null : int
        The most series simulated for each test; the least p value is ``1 / (n_null + 1)``.
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

        For each layer: ``next_step``, ``next_strength``, ``next_p_value`` of the strongest change that is no jump; NaN
        and 0 in a series that never changes.

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

    What it cannot tell. A change that is smooth on the scale of some measurements is curve: measure more often.
    Excursions of up to three measurements are spikes, and no jumps. A jump in the first or last three measurements
    cannot be told from an end of the curve, and one shortly after them hardly. Two jumps within two measurements are
    one. Where noise is a random walk, a jump is a step larger than its steps are. Counts such as ``energy_dims_90``
    move by whole numbers also where what they count moves smoothly: ask about a measure that is continuous.

    About 0.1 s for 400 measurements and 0.5 s more for each jump; 0.2 s once for each number of measurements, and again
    for each series whose noise changes its scale. Time grows with the square of the number of measurements.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> values = rng.standard_normal(100) + 8.0 * (np.arange(100) >= 60)
    >>> found = detect_jumps(values, np.arange(100) * 5, n_null=99)
    >>> found["step"].values.tolist(), bool(abs(found["size"][0] - 8) < 1)
    ([300], True)
    """
    require_count("n_null", n_null, 1)
    if not 0 < alpha < 1 or alpha * (n_null + 1) < 2:
        raise InvalidInputError(
            f"alpha={alpha!r} with n_null={n_null} is not possible: expected a level between 0 and 1, and at least "
            "2 / alpha simulated series, without which no jump is significant."
        )
    given = _measured(series, measure)
    at = _training_steps(given, steps)
    several = LAYER in given.dims
    layers = [str(layer) for layer in given[LAYER].values] if several else [str(given.attrs.get(LAYER, ""))]
    values = np.asarray(given.values, dtype=np.float64).reshape(len(at), len(layers))
    for column, layer in zip(values.T, layers, strict=True):
        _require_finite(column, at, f"{given.name or 'The series'}{f' of layer {layer}' if several else ''}")
    with ThreadpoolController().limit(limits=1, user_api="blas"):  # the matrices are small: more threads only wait
        searches = [Search(column, alpha, n_null, seed) if _varies(column) else None for column in values.T]
        found = _assembled(values, at, layers if several else None, searches, alpha)
    parameters = {"alpha": alpha, "n_null": n_null, "seed": seed, "measure": str(given.name or "")}
    return described(found, given, "jumps of a series measured while training", parameters, squeeze=False,
                     units={name: text for name, text in _UNITS.items() if name in found})  # fmt: skip


def _assembled(
    values: F64, at: I64, layers: list[str] | None, searches: list[Search | None], alpha: float
) -> xr.Dataset:
    """Choose by the false discovery rate over all layers, fit what was chosen, and put names to it."""
    kept = _significant(searches, alpha)
    fits = [_fitted(search, column, jumps) for search, column, jumps in zip(searches, values.T, kept, strict=True)]
    owner = np.repeat(np.arange(len(kept)), [len(jumps) for jumps in kept])
    jumps = [jump for some in kept for jump in some]
    index = np.array([step.at for step, _ in jumps], dtype=np.int64)
    size = np.concatenate([one.sizes for one in fits])
    draws = max((len(step.null) for step, _ in jumps), default=0)
    null = np.full((len(jumps), draws), np.nan)
    for row, (step, _) in zip(null, jumps, strict=True):
        row[: len(step.null)] = np.sqrt(step.null)
    noise = np.stack([one.noise for one in fits], axis=1)
    about = {
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
    variables: dict[str, Any] = {name: (JUMP, one) for name, one in about.items()}
    variables["null_strength"] = ((JUMP, "draw"), null)
    if layers is not None:
        variables[LAYER] = (JUMP, np.array(layers)[owner])
    over = (MEASUREMENT, MEASURED_LAYER) if layers is not None else (MEASUREMENT,)
    curves = {
        "series": values,
        "trend": np.stack([one.curve for one in fits], axis=1),
        "level": np.stack([one.level for one in fits], axis=1),
        "level_error": np.stack([one.error for one in fits], axis=1),
        "noise": noise,
    }
    rest = {
        "next_step": [np.nan if search is None else float(at[search.next.at]) for search in searches],
        "next_strength": [0.0 if search is None else float(np.sqrt(search.next.gain)) for search in searches],
        "next_p_value": [1.0 if search is None else search.next.p_value for search in searches],
    }
    variables |= {name: (over, one if layers is not None else one[:, 0]) for name, one in curves.items()}
    variables |= {name: (over[1:], one if layers is not None else one[0]) for name, one in rest.items()}
    return xr.Dataset(variables, {MEASUREMENT: at} | ({MEASURED_LAYER: layers} if layers is not None else {}))


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


def _measured(series: Any, measure: str) -> xr.DataArray:
    """Return the series as (step,) or (step, layer)."""
    if isinstance(series, xr.Dataset):
        if measure not in series:
            held = ", ".join(str(name) for name in series.data_vars if STEP in series[name].dims) or "none"
            raise NotFoundError(f"The Dataset has no measure {measure!r} over step: it has {held}.")
        return _measured(series[measure], measure)
    if not isinstance(series, xr.DataArray):
        array = np.asarray(series)
        if array.ndim != 1:
            raise DimensionError(
                f"The series has shape {array.shape}: expected one number for each measurement, or a DataArray "
                "with dims step and layer."
            )
        series = xr.DataArray(array, dims=(STEP,))
    if set(series.dims) not in ({STEP}, {STEP, LAYER}):
        raise DimensionError(f"The series has dims {series.dims}: expected step, and layer where there are several.")
    if series.dtype.kind not in "fiub":
        raise InvalidInputError(f"The series has dtype {series.dtype}: expected real numbers.")
    found: xr.DataArray = series.transpose(STEP, ...)
    return found


def _training_steps(series: xr.DataArray, steps: ArrayLike | None) -> I64:
    n = series.sizes[STEP]
    if n < FEWEST:
        raise DimensionError(
            f"The series has {n} measurements: a jump is told from noise by at least {FEWEST}; measure more often."
        )
    if steps is None:
        if STEP not in series.coords:
            raise NotFoundError("The series does not say at which training steps it was measured: pass steps=.")
        steps = series[STEP].values
    at = np.asarray(steps)
    if at.shape != (n,):
        raise DimensionError(f"steps has shape {at.shape} where the series has {n} measurements: give one step each.")
    if at.dtype.kind not in "iuf" or not (at == np.floor(at)).all() or not (np.diff(at) > 0).all():
        raise InvalidInputError("steps are not increasing whole numbers: give the training step of each measurement.")
    return at.astype(np.int64)


def _require_finite(values: F64, at: I64, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise InvalidInputError(
            f"{name} is NaN or infinite at {bad.size} of {len(values)} measurements, the first at step {at[bad[0]]}: "
            "drop those measurements first."
        )


def _varies(values: F64) -> bool:
    return bool(np.ptp(values) > 1e-12 * np.abs(values).max())
