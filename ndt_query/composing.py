"""The regression behind `ndt_query.compose`, asked of the rows of one checkpoint: scores, their null, contributors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ndt_query.inference import fdr, jackknife
from ndt_query.kernels import ridge
from ndt_query.kernels.selectivity import normalised
from ndt_store.dims import UNIT

__all__ = ["EARLY", "LEVEL", "OUTPUTS", "Composing"]

F64 = NDArray[np.float64]
LEVEL: Final = 0.05
"""False discovery rate at which a unit counts as above the null."""

EARLY: Final = "early_unit"
_TIE: Final = 1e-10

# What is found, by name: dimensions after the checkpoint, and dtype.
OUTPUTS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "r2": ((UNIT,), "float64"),
    "r2_low": ((UNIT,), "float64"),
    "r2_high": ((UNIT,), "float64"),
    "r2_by_fold": (("fold", UNIT), "float64"),
    "r2_in_sample": ((UNIT,), "float64"),
    "null_r2": (("permutation", UNIT), "float64"),
    "p_value": ((UNIT,), "float64"),
    "q_value": ((UNIT,), "float64"),
    "composed": ((UNIT,), "bool"),
    "alpha": ((UNIT,), "float64"),
    EARLY: ((UNIT, "rank"), "int64"),
    "coefficient": ((UNIT, "rank"), "float64"),
    "share": ((UNIT, "rank"), "float64"),
    "leave_out": ((UNIT, "rank"), "float64"),
    "nan_count": ((UNIT,), "int64"),
    "early_nan_count": ((), "int64"),
}


@dataclass(frozen=True, slots=True)
class Composing:
    """The question, asked of the rows of one checkpoint or more.

    Parameters
    ----------
    alphas : tuple of float
        Penalties.
    groups : ndarray of int64 (example,)
        Group of each example; two groups are a fold.
    folds, k, n_permutations, seed : int
        As in `compose`.
    interval : {"jackknife", "none"}
        As in `compose`.
    threshold, confidence : float
        As in `compose`.
    labels : ndarray of int64 (unit,)
        Labels of early units.
    """

    alphas: tuple[float, ...]
    groups: NDArray[np.int64]
    folds: int
    k: int
    threshold: float
    n_permutations: int
    interval: str
    confidence: float
    seed: int
    labels: NDArray[np.int64]

    def __call__(self, early: F64, late: F64) -> Mapping[str, NDArray[Any]]:
        """Return what `OUTPUTS` names, from rows (checkpoint, example, unit) of both layers."""
        found = [self._one(x, y) for x, y in zip(early, late, strict=True)]
        return {name: np.stack([one[name] for one in found]) for name in OUTPUTS}

    def _one(self, x: F64, y: F64) -> dict[str, NDArray[Any]]:
        known = np.isfinite(y).all(axis=0) & bool(np.isfinite(x).all())
        whole = self._unknown(y.shape[1])
        whole["nan_count"] = np.isnan(y).sum(axis=0)
        whole["early_nan_count"] = np.isnan(x).sum()
        if known.any():
            for name, values in self._finite(x, normalised(y[:, known])).items():
                at = OUTPUTS[name][0].index(UNIT)
                whole[name][(slice(None),) * at + (known,)] = values
        return whole

    def _unknown(self, n_units: int) -> dict[str, NDArray[Any]]:
        sizes, fills = self.sizes(n_units), {"float64": np.nan, "bool": False, "int64": -1}
        return {
            name: np.full([sizes[dim] for dim in dims], fills[kind], dtype=kind)
            for name, (dims, kind) in OUTPUTS.items()
        }

    def sizes(self, n_units: int) -> dict[str, int]:
        """Extents of the dimensions in `OUTPUTS`."""
        return {UNIT: n_units, "rank": self.k, "fold": self.folds, "permutation": self.n_permutations}

    def _finite(self, x: F64, y: F64) -> dict[str, NDArray[Any]]:
        design = self._design(x, slice(None))
        held_out = design.held_out(y)
        null = design.null_r2(y, self.n_permutations, self.seed)
        refit = design.refit(y, held_out.overall)
        r2 = held_out.r2
        p_value = _pooled_p_value(r2, null)
        q_value = fdr(p_value)
        low, high = self._limits(x, y, r2)
        with np.errstate(invalid="ignore"):
            composed = (r2 > self.threshold) & (q_value <= LEVEL * (1 + _TIE))  # 19 shuffles just reach it
        return {
            "r2": r2, "r2_low": low, "r2_high": high, "r2_by_fold": held_out.r2_by_fold,
            "r2_in_sample": refit.r2, "null_r2": null, "p_value": p_value, "q_value": q_value, "composed": composed,
            "alpha": np.where(np.isnan(r2), np.nan, np.asarray(self.alphas)[held_out.overall]),
            **self._contributors(refit),
        }  # fmt: skip

    def _design(self, x: F64, rows: Any) -> ridge.Design:
        return ridge.Design(x[rows], self.groups[rows] % self.folds, self.alphas)

    def _limits(self, x: F64, y: F64, r2: F64) -> tuple[F64, F64]:
        """Do all of it again without each group; leaving out its errors alone would take the fits for given."""
        if self.interval == "none":
            return np.full(r2.shape, np.nan), np.full(r2.shape, np.nan)
        others = [self.groups != group for group in range(2 * self.folds)]
        found = jackknife([self._design(x, rows).held_out(y[rows]).r2 for rows in others], r2,
                          confidence=self.confidence)  # fmt: skip
        return found.low, np.minimum(found.high, 1.0)

    def _contributors(self, refit: ridge.Refit) -> dict[str, NDArray[Any]]:
        size = np.abs(refit.coefficients)
        order = np.argsort(-size, axis=0, kind="stable")[: self.k]
        total = size.sum(axis=0)
        with np.errstate(invalid="ignore"):
            share = np.where(total > 0, size / total, np.nan)
        picked = {"coefficient": refit.coefficients, "share": share, "leave_out": refit.losses}
        found = {name: np.take_along_axis(values, order, axis=0).T for name, values in picked.items()}
        labels = np.where(np.isnan(found["share"]), -1, self.labels[order.T])
        return {EARLY: labels, **found}

    def nbytes(self, n: int, p: int, q: int) -> int:
        """Memory of one checkpoint of n examples, p early and q late units, beside the rows themselves."""
        column = ridge.column_nbytes(n, p, self.folds, len(self.alphas)) + 8 * (4 * p + self.n_permutations)
        # Beside the design of all examples there is that of all but a group.
        return 2 * ridge.design_nbytes(n, p, self.folds) + q * column + ridge.BATCH_NBYTES


def _pooled_p_value(observed: F64, null: F64) -> F64:
    """Share of all values, observed ones and those of every shuffle (shuffle, unit), that reach each observed one."""
    tested = np.isfinite(observed)
    p_value = np.full(observed.shape, np.nan)
    pool = np.sort(np.concatenate([observed[None, tested], null[:, tested]]), axis=None)
    limit = observed[tested] - _TIE * np.maximum(1.0, np.abs(observed[tested]))
    if pool.size:
        p_value[tested] = (pool.size - np.searchsorted(pool, limit)) / pool.size
    return p_value
