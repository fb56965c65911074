"""Anomalies of gradients: measurements that stand out of a band, and whether they warn of jumps."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.inference import fdr
from ndt_query.inputs import require_count
from ndt_query.intervals import null_p_value, require_level
from ndt_query.jumps import detect_jumps
from ndt_query.kernels.anomalies import band, between
from ndt_query.layers import software
from ndt_query.resampling import block_length
from ndt_query.tracked import require_finite, training_steps, whole_layers
from ndt_store.dims import PARAMETER, STEP
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.reader import Store
from ndt_store.views.spectrum import MEASURES

__all__ = ["gradient_anomalies"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ANOMALY: Final = "anomaly"
NORM: Final = "gradient_norm"
LEAST: Final = 30
WIDTH: Final = 9
LONGEST_BLOCK: Final = 10
SAME: Final = 1e-4
"""Of the logarithm of a norm: clipping leaves differences of rounding."""


def gradient_anomalies(
    store: Store | xr.Dataset | xr.DataArray,
    *,
    jumps: xr.Dataset | None = None,
    alpha: float = 0.05,
    window: int = 10,
    n_resamples: int = 199,
    seed: int = 0,
) -> xr.Dataset:
    """Find measurements at which the norm of the gradient stands out, and ask whether they warn of jumps.

    Parameters
    ----------
    store : Store, Dataset or DataArray
        With a training that was tracked, of which ``gradient_norm`` (step, parameter) is taken as one norm over all
        parameters; or that training; or a series (step,) of norms. At least 30 measurements.
    jumps : Dataset, optional
        From `detect_jumps`, of the same training. Without it they are looked for in the participation ratio that a
        Store or Dataset tracked, or in the first measure of dimension that it did; of a bare series there are none.
    alpha : float
        False discovery rate of anomalies, over measurements.
    window : int
        Measurements before a jump in which an anomaly counts as its warning.
    n_resamples, seed : int
        Block bootstraps behind each p value.

    Returns
    -------
    Dataset
        Over ``step``: ``norm``, L2 over all parameters, ``expected``, and ``band_low`` and ``band_high``, which hold
        all values of a series without anomalies with ``1 - alpha``; ``p_value``, ``q_value`` and ``is_anomaly``.

        Over ``anomaly``, contiguous measurements as one: ``first_step``, ``last_step``, ``factor``, norm over what was
        expected where it is farthest, and ``anomaly_q_value``, the least.

        ``jump_step`` (jump), distinct steps of jumps in any layer, and ``is_warned`` (jump): an anomaly begins within
        `window` measurements before it. ``n_warned``; ``warned_by_chance``, its mean where the timing of anomalies is
        shuffled, and ``warning_p_value``, the share of shuffled timings that warn of as many; both NaN where there are
        no jumps or no anomalies.

    Raises
    ------
    NotFoundError
        No gradients were tracked.
    DimensionError
        There are fewer than 30 measurements, or other dimensions.
    InvalidInputError
        A norm is not finite and positive, half of them are the same, or an option is not possible.

    Notes
    -----
    Works on the logarithm of the norm. What is expected is the median of means of neighbours that lie as far before as
    behind, four pairs; the scale is that of residuals in the quarter of the series about a measurement, without those
    next to it; tails are Student's t, as heavy as those of the residuals. p values are averages over block bootstraps
    of scale and tails, since neighbours depend on each other. In series of white, AR(1) and t noise, exponentials
    and noise that grows loud or quiet, about 5% or fewer gave any anomaly; 10% where noise is five times louder at
    first, or has tails of 3 degrees of freedom. A single value 12 standard deviations off is found nearly always in
    400 measurements, one of 8 in about 60%. The first and last measurement are never anomalies, and what stays changed
    is a jump: `detect_jumps` finds it. About 0.1 s for 400 measurements, beside the search for jumps.

    Timing is shuffled by turning the anomalies round the series by every possible lag, which keeps them as clustered as
    they are. With few jumps little can be shown: one jump can reach a p value no less than the share of measurements
    that are within a window after an anomaly.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> norms = np.exp(0.1 * rng.standard_normal(200))
    >>> norms[120] *= 5
    >>> found = gradient_anomalies(xr.DataArray(norms, {"step": np.arange(200) * 5}, ("step",)))
    >>> found["first_step"].values.tolist(), round(float(found["factor"][0]), 1)
    ([600], 5.1)
    """
    alpha = require_level(alpha, "alpha")
    seed, window = require_count("seed", seed, 0), require_count("window", window, 1)
    n_resamples = require_count("n_resamples", n_resamples, 1)
    training = store.training if isinstance(store, Store) else store
    if not isinstance(training, xr.Dataset | xr.DataArray):
        raise InvalidInputError(f"Anomalies are of a Store, its training, or a series: got {type(store).__name__}.")
    norms, at = _norms(training)
    logs = np.log(norms)
    _refuse_clipped(logs)
    length = block_length(np.abs(logs - between(logs, WIDTH)), scheme="moving")
    block = int(np.clip(np.ceil(np.nan_to_num(length, nan=1.0)), 1, LONGEST_BLOCK))
    found = band(logs, width=WIDTH, block=block, n_resamples=n_resamples, seed=seed)
    q_value = fdr(found.p_value)
    hits = np.asarray(q_value <= alpha)
    low, high = found.limits(alpha)
    events = _events(hits)
    farthest = [begin + int(np.argmax(np.abs(logs - found.trend)[begin:end])) for begin, end in events]
    if jumps is None and isinstance(training, xr.Dataset):
        jumps = _jumps_of(training)
    if jumps is not None and "step" not in jumps:
        raise DimensionError("jumps has no variable 'step': pass what detect_jumps gave.")
    jumped = np.unique(jumps["step"].values).astype(np.int64) if jumps is not None else np.zeros(0, np.int64)
    variables: dict[str, Any] = {
        "norm": (STEP, norms), "expected": (STEP, np.exp(found.trend)),
        "band_low": (STEP, np.exp(low)), "band_high": (STEP, np.exp(high)),
        "p_value": (STEP, found.p_value), "q_value": (STEP, q_value), "is_anomaly": (STEP, hits),
        "first_step": (ANOMALY, at[[begin for begin, _ in events]]),
        "last_step": (ANOMALY, at[[end - 1 for _, end in events]]),
        "factor": (ANOMALY, np.exp(logs - found.trend)[farthest]),
        "anomaly_q_value": (ANOMALY, np.array([q_value[begin:end].min() for begin, end in events])),
        **_warnings(np.array([begin for begin, _ in events], np.int64), jumped, at, window),
    }  # fmt: skip
    parameters = {"alpha": alpha, "window": window, "n_resamples": n_resamples, "seed": seed, "block": block}
    attrs = {"what": "anomalies of the norm of the gradient", "parameters": json.dumps(parameters)}
    if isinstance(store, Store):
        attrs["store"] = store.path
    return xr.Dataset(variables, {STEP: at}, {**attrs, "software": software()})


def _jumps_of(training: xr.Dataset) -> xr.Dataset | None:
    """Jumps of the first measure of dimension that was tracked, in the layers that have it throughout; None without."""
    measure = next((name for name in ("participation_ratio", *MEASURES) if name in training), None)
    if measure is None:
        return None
    series = whole_layers(training[measure])
    return detect_jumps(series, measure=measure) if series.size else None


def _norms(training: xr.Dataset | xr.DataArray) -> tuple[F64, I64]:
    """Norm over all parameters at each measurement that has one, and the steps."""
    if isinstance(training, xr.Dataset):
        if NORM not in training:
            raise NotFoundError(
                "The training has no gradient_norm: track it with a recipe's [tracking] or Session.track, which keep "
                "the norms of gradients beside the loss."
            )
        training = training[NORM]
    others = [str(dim) for dim in training.dims if dim != STEP]
    if STEP not in training.dims or any(dim != PARAMETER for dim in others):
        raise DimensionError(f"Norms of gradients have dims {training.dims}: expected step, and perhaps parameter.")
    norms = training.astype(np.float64)
    if others:
        # A parameter that never has a gradient is frozen; one that has none at times is not finite there.
        norms = norms.isel({PARAMETER: norms.notnull().any(STEP).values})
        if not norms.sizes[PARAMETER]:
            raise NotFoundError(
                "No parameter held a gradient when the training was tracked: call Session.track between backward() and "
                "zero_grad()."
            )
        # Before the first update no parameter has one.
        norms = norms.isel({STEP: slice(int(bool(norms.isel({STEP: 0}).isnull().all())), None)})
        norms = (norms**2).sum(PARAMETER, skipna=False) ** 0.5
    norms = norms.isel({STEP: slice(int(norms.isnull().values[:1].any()), None)})
    values = np.asarray(norms.values, np.float64)
    if len(values) < LEAST:
        raise DimensionError(f"There are {len(values)} measurements of gradients: a band needs {LEAST} or more.")
    at = training_steps(norms, None)
    require_finite(values, at, "The norm of the gradient")
    if (values <= 0).any():
        raise InvalidInputError(
            f"The norm of the gradient is 0 at step {at[int(np.argmax(values <= 0))]}: anomalies are factors, of norms "
            "above 0; drop those measurements first."
        )
    return values, at


def _refuse_clipped(logs: F64) -> None:
    """Raise where half of the norms are one number, as those of clipped gradients are: they have no scale."""
    alike = np.abs(logs - np.median(logs)) <= SAME
    if alike.mean() >= 0.5:
        raise InvalidInputError(
            f"{int(alike.sum())} of {len(logs)} norms of the gradient are the same: they look clipped; track them "
            "before they are clipped."
        )


def _events(hits: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Begin and end of each run of hits."""
    edges = np.diff(np.concatenate([[0], hits.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def _warnings(begins: I64, jumped: I64, at: I64, window: int) -> dict[str, Any]:
    n = len(at)
    places = np.searchsorted(at, jumped)
    # Row 0 is the timing as it was; every other one has it turned round the series by a lag.
    lags = np.arange(n)
    turned = (begins[None, :] + lags[:, None]) % n
    ahead = places[None, :, None] - turned[:, None, :]
    warned = np.asarray(((ahead >= 1) & (ahead <= window)).any(axis=2))
    counts = warned.sum(axis=1)
    told = bool(len(begins) and len(jumped))
    return {
        "jump_step": ("jump", jumped),
        "is_warned": ("jump", warned[0]),
        "n_warned": ((), int(counts[0])),
        "warned_by_chance": ((), float(counts[1:].mean()) if told else np.nan),
        "warning_p_value": ((), float(null_p_value((counts[1:] >= counts[0]).sum(), n - 1)) if told else np.nan),
    }
