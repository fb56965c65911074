"""Several summaries of a block from one pass over its memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ndt_store.views import classes, moments
from ndt_store.views.blocks import Array, Block
from ndt_store.views.classes import ClassSums
from ndt_store.views.moments import Moments
from ndt_store.views.sums import reduce_block

__all__ = ["Summary", "summarise"]


@dataclass(frozen=True, slots=True)
class Summary:
    """What was asked for of one block.

    Parameters
    ----------
    moments : Moments
        Moments of each unit.
    classes : ClassSums or None
        Sums over the examples of each class.
    best : ndarray (checkpoint, example, unit) or None
        Largest value of each example over tokens and positions, NaN if any is NaN, in the dtype of the block; a view of
        the block where there is one position.
    """

    moments: Moments
    classes: ClassSums | None
    best: Array | None


def summarise(
    block: Block,
    *,
    threshold: float = 0.0,
    codes: NDArray[np.int64] | None = None,
    n_classes: int = 0,
    best: bool = False,
) -> Summary:
    """Summarise a block without holding the interpreter lock, so that threads work side by side.

    Parameters
    ----------
    block : ndarray (checkpoint, example, token, unit, position)
        Activations of any real dtype and any strides; C-contiguous float32 and float64 are not copied.
    threshold : float
        A value is active when its magnitude exceeds this, compared in the precision of the values.
    codes : ndarray of int64 (example,), optional
        Class of each example, ``0 <= code < n_classes``: asks for `Summary.classes`.
    n_classes : int
        Number of classes.
    best : bool
        Asks for `Summary.best`.

    Raises
    ------
    InvalidInputError
        If codes are out of bounds, or not one an example.

    Examples
    --------
    >>> block = np.array([1.0, 0.0, 3.0, 4.0], np.float32).reshape(1, 2, 1, 1, 2)
    >>> summary = summarise(block, best=True)
    >>> summary.moments.mean, summary.best.ravel()
    (array([[2.]]), array([1., 4.], dtype=float32))
    """
    sums = reduce_block(block, threshold, codes, n_classes, best=best)
    by_class = None if codes is None else classes.from_sums(sums, codes)
    return Summary(moments.from_sums(sums), by_class, sums.best if best else None)
