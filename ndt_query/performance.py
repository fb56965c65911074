"""How well the network does on the probe set: loss and accuracy at each checkpoint, with intervals over examples."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ndt_query.inference import clopper_pearson, mean_ci
from ndt_query.layers import RootLike, described, root_dataset
from ndt_store.dims import CHECKPOINT, EXAMPLE
from ndt_store.errors import DimensionError, NotFoundError

__all__ = ["performance"]

NEEDED = ("loss", "prediction", "label")


def performance(data: RootLike, *, confidence: float = 0.95) -> xr.Dataset:
    """Loss and accuracy on the probe set over training.

    Parameters
    ----------
    data : Store, DataTree or Dataset
        With ``loss`` and ``prediction`` (checkpoint, example) and ``label`` (example,), as at the root of a store.
    confidence : float
        Nominal level of the intervals.

    Returns
    -------
    Dataset
        Over (checkpoint,): ``loss``, the mean over examples, with ``loss_low`` and ``loss_high``, Student's t interval
        of a mean; ``accuracy``, the fraction of examples with ``prediction == label``, with ``accuracy_low`` and
        ``accuracy_high``, the exact limits of Clopper and Pearson (1934). A NaN makes that checkpoint's loss NaN.

    Raises
    ------
    NotFoundError
        One of the three is missing.
    DimensionError
        There is no example, or a variable has other dimensions.

    Notes
    -----
    The intervals say how the numbers would vary with other examples of the same distribution, not with another seed of
    training. One pass over two numbers an example and checkpoint, computed at once.

    Examples
    --------
    >>> root = xr.Dataset(
    ...     {
    ...         "loss": (("checkpoint", "example"), [[1.0, 3.0]]),
    ...         "prediction": (("checkpoint", "example"), [[0, 1]]),
    ...         "label": ("example", [0, 0]),
    ...     }
    ... )
    >>> found = performance(root)
    >>> found["loss"].values.tolist(), found["accuracy"].values.tolist()
    ([2.0], [0.5])
    """
    root = root_dataset(data)
    missing = [name for name in NEEDED if name not in root.variables]
    if missing:
        raise NotFoundError(
            f"There is no {' and no '.join(missing)} at the root: capture a model with labelled examples."
        )
    for name in NEEDED:
        expected = {EXAMPLE} if name == "label" else {CHECKPOINT, EXAMPLE}
        if set(root[name].dims) != expected or root.sizes[EXAMPLE] == 0:
            raise DimensionError(f"{name} has dims {root[name].dims} of sizes {root[name].shape}: expected {expected}.")
    loss = root["loss"].transpose(CHECKPOINT, EXAMPLE).astype(np.float64).compute()
    correct = (root["prediction"] == root["label"]).transpose(CHECKPOINT, EXAMPLE).compute()
    n = root.sizes[EXAMPLE]
    mean = mean_ci(loss.values, axis=1, confidence=confidence)
    hits = correct.sum(EXAMPLE)
    low, high = clopper_pearson(hits.values, n, confidence=confidence)
    variables = {
        "loss": hits.copy(data=mean.estimate),
        "loss_low": hits.copy(data=mean.low),
        "loss_high": hits.copy(data=mean.high),
        "accuracy": hits / n,
        "accuracy_low": hits.copy(data=low),
        "accuracy_high": hits.copy(data=high),
    }
    found = {name: one.variable for name, one in variables.items()}
    return described(found, loss, "performance on the probe set", {"confidence": confidence}, squeeze=False)
