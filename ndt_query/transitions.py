"""Whether series over training changed gradually or suddenly: a change point and the largest step, each with a null."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import ThreadpoolController

from ndt_query.dependent import neighbour_correlation
from ndt_query.growth import fit_growth
from ndt_query.inference import fdr
from ndt_query.inputs import require_count
from ndt_query.intervals import null_p_value, require_level
from ndt_query.kernels.growth import PARAMETERS, RISE
from ndt_query.kernels.sharpness import FASTEST, SMOOTH, fitted, largest_share
from ndt_query.kernels.stepsearch import Search
from ndt_query.layers import described
from ndt_query.resampling import block_length, block_resamples
from ndt_query.series import SeriesLike, as_trajectories
from ndt_query.tracked import varies
from ndt_store.errors import DimensionError, InvalidInputError

__all__ = ["LEAST", "VERDICTS", "transition"]

F64 = NDArray[np.float64]

LEAST: Final = 20
VERDICTS: Final = ("sudden", "undecided", "gradual", "none", "unknown")
OF_JUMP: Final = ("jump_step", "jump_low", "jump_high", "jump_size")
CLEAR: Final = 6.0
"""Deviations of the noise that no change of noise alone comes near to."""

OF_SHARE: Final = (
    "largest_before", "largest_after", "largest_share", "null_share_95", "total_change", "change_in_noise", "half_step",
)  # fmt: skip
OF_GROWTH: Final = ("midpoint", "midpoint_low", "midpoint_high", "r2")


@dataclass(frozen=True, slots=True)
class _How:
    alpha: float
    n_null: int
    seed: int


def transition(
    series: SeriesLike,
    steps: ArrayLike | None = None,
    *,
    alpha: float = 0.05,
    n_null: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Say of each series whether it changed gradually or suddenly while training, or not at all.

    Parameters
    ----------
    series : array_like (step,), DataArray (..., step) or Dataset
        At least 20 values over ``step`` or ``checkpoint``, such as ``disentanglement(store)["accuracy"]``; every series
        of a DataArray, such as that of each layer, is asked about for itself. Of a Dataset, the floating variables
        over all of its dimensions, without ends of intervals, along a new dimension ``measure``.
    steps : array_like (step,), optional
        Training step of each value of a plain array; 0, 1, 2, ... without it.
    alpha : float
        Level of the tests and of the false discovery rate.
    n_null : int, optional
        Series of each null. By default 199, or as many as let the q value of one series reach a quarter of `alpha`.
    seed : int
        Of the nulls, the same for each series.

    Returns
    -------
    Dataset
        Over the dimensions of `series` but training:

        ``change``
            ``"sudden"``: q <= alpha. ``"undecided"``: there is a jump, p <= alpha, but a rise over five measurements
            explains the largest step as well. ``"gradual"``: no jump, and the series ends six deviations of the noise
            about its curve from where it began, or more, or grows by the test of `fit_growth`. ``"none"``: none of it
            can be told from noise. ``"unknown"``: the series has a NaN.
        ``p_value``, ``q_value``
            Of suddenness: the larger of ``jump_p_value`` and ``share_p_value``, since both have to be small; q over all
            series (Benjamini and Hochberg 1995).
        ``jump_p_value``, ``jump_step``, ``jump_low``, ``jump_high``, ``jump_size``, ``n_jumps``
            Of the change-point test of `detect_jumps`: its strongest jump, with the first step after it, the ends of
            the 95% interval of that step, and the size as fitted; NaN where p exceeds alpha, but for p itself.
        ``largest_share``, ``largest_before``, ``largest_after``, ``share_p_value``, ``null_share_95``, ``total_change``
            Share of the total change (mean of the last tenth less that of the first) that falls into the largest step
            in its direction between neighbouring measurements, and the steps it lies between; its p value, and what
            95% of smooth series stay below. A share exceeds 1 where noise exceeds the change. ``change_in_noise``: the
            size of the total change in standard deviations of the noise about the curve.
        ``half_step``
            First measured step at which half of the change was done, on the logistic curve in measurements that fits
            best; NaN where there is none.
        ``growth_p_value``, ``midpoint``, ``midpoint_low``, ``midpoint_high``, ``r2``, ``width``
            Of `fit_growth`: the same in its logistic fit, which is in training steps, and the steps from 10 to 90% of
            the way; NaN without growth. Where checkpoints crowd at the beginning, a curve in training steps may fit
            badly: then believe ``half_step``.
        ``n``, ``nan_count``
            Values, and NaN or infinite ones.

    Raises
    ------
    DimensionError
        There are fewer than 20 values.
    InvalidInputError
        Steps do not increase, or `n_null` cannot give a p value as small as `alpha`.

    Notes
    -----
    The null of the share is the smooth curve of the series, the logistic one of at least five measurements from 10 to
    90% of the way that fits best, with residuals resampled in blocks. The residuals are those about the best curve of
    any width, so that a jump does not lend its own height to the noise.

    Sudden and gradual are said in measurements, not in training steps: where checkpoints lie far apart, much may have
    happened gradually between two of them. Both are about one series: other seeds and other examples are not in it.

    With 20 to 50 values it can tell a change of eight deviations of the noise or more within one measurement from one
    that takes five or more: found in about 8 of 10 series of 20 values and in 9 of 10 of 40. Of changes of four
    deviations most are missed, and are called undecided or gradual. Gradual therefore says that no jump was seen, not
    that there was none. It cannot tell changes within two to four measurements from jumps, nor anything in the first
    and last three measurements. Of gradual rises, lines, exponentials, white and AR(1) noise at most 5% are called
    sudden.

    About 0.1 s a series of 50 values.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> step = np.arange(40) * 10
    >>> curves = np.stack([step >= 200, 1 / (1 + np.exp(-(step - 200) / 50)), 0 * step])
    >>> curves = curves + 0.05 * rng.standard_normal((3, 40))
    >>> series = xr.DataArray(curves, {"layer": ["a", "b", "c"], "step": step}, ("layer", "step"))
    >>> found = transition(series)
    >>> found["change"].values.tolist(), int(found["jump_step"][0])
    (['sudden', 'gradual', 'none'], 200)
    """
    require_level(alpha, "alpha")
    given = as_trajectories(series, steps)
    n = len(given.steps)
    if n < LEAST:
        raise DimensionError(
            f"The series has {n} values along {given.dim}: gradual is told from sudden by at least {LEAST}; measure "
            "more often."
        )
    rows = given.values.reshape(-1, n)
    how = _How(alpha, _series_needed(alpha, n_null, len(rows)), require_count("seed", seed, 0))
    with ThreadpoolController().limit(limits=1, user_api="blas"):  # the matrices are small: more threads only wait
        found = [_one(row, given.steps, how) for row in rows]
    growth = fit_growth(series, steps, alpha=alpha, n_resamples=200, n_null=max(199, how.n_null), seed=seed)
    shape = given.values.shape[:-1]
    columns: dict[str, NDArray[Any]] = {
        name: np.array([one[name] for one in found]).reshape(shape) for name in found[0]
    }
    columns["q_value"] = fdr(columns["p_value"].ravel()).reshape(shape)
    columns["growth_p_value"] = growth["p_value"].values
    columns |= {name: growth[name].values for name in OF_GROWTH}
    grown = growth["growth"].values
    at_bound = growth["at_bound"].values[..., PARAMETERS.index("rate")]
    rate = np.where(grown & ~at_bound, np.abs(growth["rate"].values), np.nan)
    columns["width"] = RISE / rate
    columns["r2"] = np.where(grown, columns["r2"], np.nan)
    columns["change"] = _verdicts(columns, grown, alpha)
    columns["half_step"] = np.where(np.isin(columns["change"], VERDICTS[:3]), columns["half_step"], np.nan)
    names = (
        "change",
        "p_value",
        "q_value",
        *(name for name in columns if name not in ("change", "p_value", "q_value")),
    )
    variables = {name: xr.Variable(given.others, columns[name]) for name in names}
    coords = {dim: labels for dim, labels in given.coords.items() if dim in given.others}
    what = f"gradual or sudden change of {given.name or 'a series'}"
    return described(variables, given.source, what, asdict(how), squeeze=False, coords=coords)


def _verdicts(columns: dict[str, NDArray[Any]], grown: NDArray[np.bool_], alpha: float) -> NDArray[Any]:
    # NaN compares false, so that series with a NaN fall through to the last.
    conditions = [
        columns["q_value"] <= alpha,
        columns["jump_p_value"] <= alpha,
        grown | (columns["change_in_noise"] >= CLEAR),
        np.isfinite(columns["p_value"]),
    ]
    return np.select(conditions, VERDICTS[:-1], VERDICTS[-1])


def _series_needed(alpha: float, n_null: int | None, n_series: int) -> int:
    if n_null is None:
        return max(199, math.ceil(4 * n_series / alpha) - 1)
    if require_count("n_null", n_null, 1) + 1 < 1 / alpha:
        raise InvalidInputError(
            f"n_null={n_null} series are too few for alpha={alpha:g}: nothing would be significant; simulate at least "
            f"{math.ceil(1 / alpha) - 1}."
        )
    return n_null


def _one(values: F64, steps: F64, how: _How) -> dict[str, Any]:
    """Both tests of one series, by the names of the result."""
    n, finite = len(values), np.isfinite(values)
    names = ("p_value", "jump_p_value", "share_p_value", *OF_JUMP, *OF_SHARE)
    found: dict[str, Any] = dict.fromkeys(names, np.nan)
    found |= {"n_jumps": 0, "n": n, "nan_count": int((~finite).sum())}
    if not finite.all():
        return found
    if not varies(values):
        return found | {
            "p_value": 1.0,
            "jump_p_value": 1.0,
            "share_p_value": 1.0,
            "total_change": 0.0,
            "change_in_noise": 0.0,
        }
    found |= _jump(values, steps, how) | _largest(values, steps, how)
    found["p_value"] = max(found["jump_p_value"], found["share_p_value"])
    return found


def _jump(values: F64, steps: F64, how: _How) -> dict[str, Any]:
    search = Search(values, how.alpha, how.n_null, how.seed)
    if not search.found:
        return {"jump_p_value": search.next.p_value}
    place = max(range(len(search.found)), key=lambda one: search.found[one].gain)
    best = search.found[place]
    return {
        "jump_p_value": best.p_value,
        "jump_step": steps[best.at],
        "jump_low": steps[best.low],
        "jump_high": steps[best.high],
        "jump_size": search.level([one.at for one in search.found]).sizes[place],
        "n_jumps": len(search.found),
    }


def _largest(values: F64, steps: F64, how: _How) -> dict[str, Any]:
    share, end, total = largest_share(values)
    curve, noise = _smooth_series(values, how)
    drawn = largest_share(curve + noise)[0]
    # Of a change of nothing any step is an infinite share: such a series of the null is as sudden as can be.
    drawn = np.where(np.isnan(drawn), np.inf, drawn)
    return {
        "largest_before": steps[int(end) - 1],
        "largest_after": steps[int(end)],
        "largest_share": float(share),
        "share_p_value": float(null_p_value((drawn >= share).sum(), how.n_null)) if np.isfinite(share) else 1.0,
        "null_share_95": float(np.quantile(drawn, 0.95, method="higher")),
        "total_change": float(total),
        "change_in_noise": float(abs(total) / noise.std()) if noise.std() > 0 else math.inf,
        "half_step": _half_step(fitted(values, FASTEST), steps),
    }


def _half_step(curve: F64, steps: F64) -> float:
    """First step at which a curve that rises or falls throughout has gone half of its way."""
    gone = np.abs(curve - curve[0]) >= 0.5 * abs(curve[-1] - curve[0])
    return float(steps[int(gone.argmax())])


def _smooth_series(values: F64, how: _How) -> tuple[F64, F64]:
    """Return the smooth curve (measurement,) of a series, and noise (draw, measurement) like that about it."""
    n, residuals = len(values), values - fitted(values, FASTEST)
    # As in `fit_growth`: where neighbours are not alike, single residuals are the cautious choice.
    dependent = neighbour_correlation(residuals, len(PARAMETERS)) > 0
    length = float(block_length(residuals)) if dependent else 1.0
    chosen = block_resamples(n, length, n_resamples=how.n_null, seed=how.seed)
    # Residuals are smaller than the noise, by the parameters that the fit has spent.
    scale = math.sqrt(n / (n - len(PARAMETERS)))
    return np.asarray(fitted(values, SMOOTH)), np.asarray(scale * (residuals - residuals.mean())[chosen])
