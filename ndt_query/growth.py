"""Logistic growth of a quantity over training: how fast, when, from where to where, and whether there is any."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import scipy.optimize
import scipy.signal
import scipy.stats
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ndt_query.dependent import neighbour_correlation, share_seen
from ndt_query.inputs import require_count
from ndt_query.intervals import null_p_value, require_level
from ndt_query.kernels import growth as kernel
from ndt_query.layers import described
from ndt_query.resampling import block_length, block_resamples
from ndt_query.series import SeriesLike, as_trajectories
from ndt_store.errors import DimensionError

__all__ = ["fit_growth"]

F64 = NDArray[np.float64]
PARAMETER: Final = "parameter"
LEAST: Final = 8
N_STARTS: Final = 8
N_STEPS: Final = 30
N_REFITS: Final = 12
MOST_DEPENDENT: Final = 0.999
_ON_BOUND: Final = 1e-3
_TOLERANCE: Final = 1e-12
NUMBERS: Final = ("p_value", "delta_aicc", "r2", "r2_low", "r2_high", "r2_noise", "block_length")
LEVELS: Final = tuple(f"{name}{end}" for name in kernel.PARAMETERS for end in ("", "_low", "_high", "_standard_error"))
CURVES: Final = ("fit", "fit_low", "fit_high")


@dataclass(frozen=True, slots=True)
class _How:
    confidence: float
    alpha: float
    n_resamples: int
    n_null: int
    seed: int


def fit_growth(
    series: SeriesLike | xr.Dataset,
    steps: ArrayLike | None = None,
    *,
    alpha: float = 0.05,
    confidence: float = 0.95,
    n_resamples: int = 500,
    n_null: int = 999,
    seed: int = 0,
) -> xr.Dataset:
    """Fit a logistic curve to a series over training, where the series grows or falls at all.

    The curve is ``floor + (ceiling - floor) / (1 + exp(-rate (step - midpoint)))``.

    Parameters
    ----------
    series : array_like (step,), DataArray (..., step) or Dataset
        Values over training, ``step`` or ``checkpoint`` in named ones; every series of a DataArray is fitted for
        itself. Of a Dataset, the floating variables over all of its dimensions, without the ends of intervals, along
        a new dimension ``measure``.
    steps : array_like (step,), optional
        Training step of each value of a plain array; 0, 1, 2, ... without it.
    alpha : float
        Level of the test for growth; where p exceeds it there is no fit.
    confidence : float
        Nominal level of the intervals.
    n_resamples : int
        Resamples of the residuals.
    n_null : int
        Series of noise in the null.
    seed : int
        Makes both repeatable.

    Returns
    -------
    Dataset
        Over the dimensions of `series` but training:

        ``growth``
            Whether a curve fits better than such noise as the series may be; p <= alpha.
        ``p_value``
            Share of series of noise, the observed one among them, on which a curve gains as much over a constant. The
            noise is normal and autoregressive of first order about a constant, with the correlation of neighbours that
            the series itself has about its mean.
        ``delta_aicc``
            AICc of the constant less that of the curve, both with such noise about them: above 0 for the curve. It does
            not account for the search for a midpoint, as p does.
        ``r2``
            Share of the variance that the curve explains, with ``r2_low`` and ``r2_high``; ``r2_noise`` is what 95% of
            the null's series stay below.
        ``rate`` (per step), ``midpoint`` (a step), ``ceiling``, ``floor``
            Of the fit, each with ``_low``, ``_high`` and ``_standard_error``; NaN without growth. A falling series has
            a negative rate. The interval is NaN for a parameter on its bound.
        ``at_bound`` (..., parameter)
            Whether the parameter sits on its bound, where the data do not determine it: the rise is faster than
            measurements show, its middle lies a whole training before or behind them, or a level lies beyond the values
            by their whole range.
        ``fit``, ``fit_low``, ``fit_high``, ``observed`` (..., step)
            The curve with its pointwise interval, NaN without growth; and the series.
        ``block_length``, ``n``, ``nan_count``
            Of the blocks of residuals, in values; the number of values; how many are NaN.

        A series with a NaN or Inf has NaN throughout, and no growth: drop those steps first if they may be left out.

    Raises
    ------
    DimensionError
        There are fewer than 8 values: two more than the curve and its noise have parameters.
    InvalidInputError
        Steps do not increase.

    Notes
    -----
    Bounded least squares (`scipy.optimize.least_squares`) from the best of the 8 likeliest of about 1,000 shapes. The
    intervals are percentiles of refits to the curve plus residuals that were resampled in blocks, because residuals
    depend on their neighbours; refits take 12 Gauss-Newton steps from the fit (Andrews 2002). The percentiles are
    widened as those of `ndt_query.block_bootstrap` are. About 30 ms a series of 400 values.

    Of 1,000 rises of 5 deviations of their noise the intervals hold the parameters in 95% with white noise and in 92%
    with noise of a correlation of 0.5, both at 200 values; at 20 values in 91% and 66%. The test calls 5% of series of
    white noise growth, 3% of series of a correlation of 0.9, and 7% of random walks. All of it holds for one series:
    other seeds are not in it. That a series grows does not say that it grows logistically: look at ``r2``, at the
    bounds and at the figure.

    Examples
    --------
    >>> steps = np.arange(0, 2000, 5)
    >>> noise = 0.2 * np.random.default_rng(0).standard_normal(len(steps))
    >>> found = fit_growth(2 + 8 / (1 + np.exp(-0.01 * (steps - 700))) + noise, steps)
    >>> round(found["rate"].item(), 3), round(found["ceiling"].item(), 1), bool(found["at_bound"].any())
    (0.01, 10.0, False)
    >>> bool(fit_growth(noise, steps)["growth"])
    False
    """
    require_level(confidence)
    require_level(alpha, "alpha")
    how = _How(
        confidence,
        alpha,
        require_count("n_resamples", n_resamples, 2),
        require_count("n_null", n_null, 1),
        require_count("seed", seed, 0),
    )
    given = as_trajectories(series, steps)
    if len(given.steps) < LEAST:
        raise DimensionError(f"A logistic fit needs {LEAST} values or more along {given.dim}: got {len(given.steps)}.")
    rows = [_one(row, given.steps, how) for row in given.values.reshape(-1, len(given.steps))]
    variables = {}
    for name, first in rows[0].items():
        last = (PARAMETER,) if name == "at_bound" else (given.dim,) * first.ndim
        stacked = np.stack([row[name] for row in rows]).reshape((*given.values.shape[:-1], *first.shape))
        variables[name] = xr.Variable((*given.others, *last), stacked)
    coords = {**given.coords, PARAMETER: list(kernel.PARAMETERS)}
    what = f"logistic growth of {given.name or 'a series'}"
    return described(variables, given.source, what, asdict(how), squeeze=False, coords=coords)


def _one(values: F64, steps: F64, how: _How) -> dict[str, NDArray[Any]]:
    """Everything about one series, by the names of the result."""
    n, missing = len(values), int(np.isnan(values).sum())
    found: dict[str, Any] = {"growth": False, **dict.fromkeys(NUMBERS, np.nan), **dict.fromkeys(LEVELS, np.nan)}
    found |= {"at_bound": np.zeros(len(kernel.PARAMETERS), bool), **{name: np.full(n, np.nan) for name in CURVES}}
    found |= {"observed": values, "n": n, "nan_count": missing}
    if np.isfinite(values).all():
        lowest, extent = float(values.min()), float(np.ptp(values))
        if extent <= 1e-12 * np.abs(values).max():
            found |= {"p_value": 1.0, "r2": 0.0}
        else:
            found |= _fitted((values - lowest) / extent, steps, lowest, extent, how)
    return {name: np.asarray(value) for name, value in found.items()}


def _fitted(values: F64, steps: F64, lowest: float, extent: float, how: _How) -> dict[str, Any]:
    """Test a series of values between 0 and 1, and where it grows tell its fit on the scale they came from."""
    n, duration = len(values), float(np.ptp(steps))
    u = (steps - steps[0]) / duration
    grid = kernel.shapes(u)
    gained, _ = kernel.gain(values, grid)
    null_gained, null_r2 = kernel.gain(_noise(values, how), grid)
    p_value = float(null_p_value((null_gained >= gained).sum(), how.n_null))
    theta = _least_squares(values, u, grid)
    curve = kernel.curve(theta, u)
    resampled, length = _resampled(values, curve, how)
    again = kernel.refit(theta, u, resampled, N_REFITS)
    curves = kernel.curve(again, u)
    quantile = (1 + how.confidence) / 2
    # Percentiles of normal estimates whose error is itself known from few blocks have to reach as far as Student's t.
    reach = scipy.stats.t.ppf(quantile, max(1.0, n / length - 1)) / scipy.stats.norm.ppf(quantile)

    def ends(drawn: F64, middle: F64) -> F64:
        return np.asarray(middle + reach * (np.quantile(drawn, (1 - quantile, quantile), axis=0) - middle))

    r2 = _r2(values, curve)
    r2_low, r2_high = ends(_r2(resampled, curves), r2)
    found: dict[str, Any] = {
        "growth": p_value <= how.alpha,
        "p_value": p_value,
        "delta_aicc": kernel.innovation_gain(values - values.mean(), values - curve) - _penalty(6, n) + _penalty(3, n),
        "r2": r2,
        "r2_low": r2_low,
        "r2_high": r2_high,
        "r2_noise": np.quantile(null_r2, 0.95),
        "block_length": length,
    }
    if not found["growth"]:
        return found
    lower, upper = kernel.limits(u)
    found["at_bound"] = np.minimum(theta - lower, upper - theta) < _ON_BOUND * (upper - lower)
    shift = np.array([0.0, steps[0], lowest, lowest])
    unit = np.array([1 / duration, duration, extent, extent])
    best, drawn = shift + unit * theta, np.where(found["at_bound"], np.nan, shift + unit * again)
    columns = (best, *ends(drawn, best), drawn.std(axis=0, ddof=1))
    found |= dict(zip(LEVELS, np.stack(columns, axis=1).ravel(), strict=True))
    lines = np.stack([curve, *ends(curves, curve)])
    return found | dict(zip(CURVES, lowest + extent * lines, strict=True))


def _resampled(values: F64, curve: F64, how: _How) -> tuple[F64, float]:
    """Series (resample, step) of the curve with residuals in blocks, and the length of these."""
    n, n_fitted, residuals = len(values), len(kernel.PARAMETERS), values - curve
    rho = neighbour_correlation(residuals, n_fitted)
    # Where neighbours are not alike, single residuals are the cautious choice, and of few the only steady one.
    length = float(block_length(residuals)) if rho > 0 else 1.0
    chosen = block_resamples(n, length, n_resamples=how.n_resamples, seed=how.seed)
    # Residuals are smaller than the noise, by the parameters that the fit has spent.
    scale = np.sqrt(n / (n - n_fitted) / share_seen(n, rho, length))
    return curve + scale * (residuals - residuals.mean())[chosen], length


def _noise(values: F64, how: _How) -> F64:
    """Noise (series, step) with the correlation of neighbours that the values have, less its small-sample bias."""
    n, deviations = len(values), values - values.mean()
    rho = float(deviations[:-1] @ deviations[1:] / (deviations[:-1] @ deviations[:-1]))
    rho = float(np.clip(rho + (1 + 3 * rho) / n, -MOST_DEPENDENT, MOST_DEPENDENT))
    innovations = np.random.default_rng(how.seed).standard_normal((how.n_null, n))
    innovations[:, 0] /= np.sqrt(1 - rho**2)
    return np.asarray(scipy.signal.lfilter([1.0], [1.0, -rho], innovations, axis=1))


def _least_squares(values: F64, u: F64, grid: kernel.Shapes) -> F64:
    """Parameters of the bounded least-squares fit, from whichever of the most alike shapes leads furthest down."""
    lower, upper = kernel.limits(u)

    def errors(theta: F64) -> F64:
        return kernel.curve(theta, u) - values

    def slopes(theta: F64) -> F64:
        return kernel.slopes(theta, u)

    starts = np.clip(kernel.starts(values, grid, N_STARTS), lower, upper)
    ends = kernel.refit(starts, u, np.broadcast_to(values, (len(starts), len(values))), N_STEPS)
    best = ends[((kernel.curve(ends, u) - values) ** 2).sum(axis=1).argmin()]
    fit = scipy.optimize.least_squares(
        errors, best, slopes, bounds=(lower, upper), x_scale="jac",
        ftol=_TOLERANCE, xtol=_TOLERANCE, gtol=_TOLERANCE,
    )  # fmt: skip
    return kernel.upright(fit.x)


def _r2(values: F64, curves: F64) -> F64:
    deviations = values - values.mean(axis=-1, keepdims=True)
    return np.asarray(1 - ((values - curves) ** 2).sum(axis=-1) / (deviations**2).sum(axis=-1))


def _penalty(k: int, n: int) -> float:
    return 2 * k * n / (n - k - 1)
