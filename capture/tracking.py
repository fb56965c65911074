"""Tracker: the dimension of every layer, loss and accuracy on a fixed validation set, cheap enough for every few steps.

One evaluation pass on one batch. Each tapped layer is reduced to a small matrix of products as it leaves its module
(`capture.second_order`), so that no activations are kept; its eigenvalues give all measures at once. The model is left
exactly as it was found: training goes on as if nothing had looked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import ThreadpoolController
from torch import nn

from capture._describe import described
from capture._suggest import expected_one_of
from capture.modelstate import model_device
from capture.naming import split_heads
from capture.objective import class_count
from capture.probe import as_probe
from capture.second_order import POSITIONS, measured, sample_rows, second_order
from capture.sites import discover_with_logits
from capture.taps import Tapper
from ndt_store.dims import ACTIVATIONS
from ndt_store.errors import InvalidInputError
from ndt_store.views.spectrum import MEASURES

__all__ = ["Measurement", "Tracker"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one look at a model gave.

    Parameters
    ----------
    validation_loss : float
        Mean cross-entropy in nats; NaN where the model's output is no class scores of the labels.
    validation_accuracy : float
        Share of examples whose largest score is their label's, 0 to 1; NaN likewise.
    dimensionality : mapping of str to ndarray of float64 (layer,)
        By measure, in the order of `Tracker.layers`. NaN for a layer that holds a NaN or does not vary.
    """

    validation_loss: float
    validation_accuracy: float
    dimensionality: Mapping[str, npt.NDArray[np.float64]]


class Tracker:
    """Measure a model on a fixed validation set, as often as wanted, and leave it as it was.

    Parameters
    ----------
    model : torch.nn.Module
        In whatever mode; measured in evaluation mode. Its weights may change between measurements, its structure not.
    inputs : array or tensor (example, ...)
        Validation inputs, copied once to where the model is. They run as one batch: some hundred are enough.
    labels : array or tensor (example,)
        Classes, whole numbers from 0.
    layers : sequence of str
        Globs over module paths, as in `capture.Session`.
    measures : sequence of str
        Any of ``stable_rank``, ``participation_ratio``, ``energy_dims_90``, ``energy_dims_95``, ``nuclear_ratio``,
        ``effective_rank``. All follow from the same eigenvalues, so that fewer are hardly cheaper.
    positions : {"flatten", "mean"}
        What becomes of conv positions and tokens: features of one sample an example, or their mean.
    centre : bool
        Measure the spectrum of the covariance, or of the raw second moment.
    dims : mapping, optional
        Names of the axes of a module's output by layer glob, where they cannot be inferred.
    output : callable, optional
        From what the model returns to its class scores.

    Raises
    ------
    InvalidInputError
        An unknown measure, a pattern that matches nothing, labels that do not belong to the inputs.
    CaptureError
        As `capture.Session`, for layers that cannot be tapped.

    Notes
    -----
    Values equal those of ``ndt_query.dimensionality`` on a capture of the same examples to a relative 1e-6; definitions
    and references stand there. As there, plain estimates from n examples cannot exceed n - 1 and are too small unless n
    is large against the dimension, so that they are comparable along one series and not between series of different n.

    One measurement costs a forward pass and, for a layer of d features, ``n d min(n, d)`` products in float64 and the
    eigenvalues of a matrix of ``min(n, d)``.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> rng = np.random.default_rng(0)
    >>> tracker = Tracker(net, rng.standard_normal((50, 4)).astype("f4"), rng.integers(0, 2, 50), ["*"])
    >>> tracker.layers
    ('0', '1', '2')
    >>> found = tracker.measure()
    >>> bool(1 <= found.dimensionality["participation_ratio"][0] <= 3), net.training
    (True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        labels: Any,
        layers: Sequence[str],
        *,
        measures: Sequence[str] = MEASURES,
        positions: str = "flatten",
        centre: bool = True,
        dims: Mapping[str, Sequence[str]] | None = None,
        output: Callable[[Any], torch.Tensor] | None = None,
    ) -> None:
        self._measures = _known(measures)
        if positions not in POSITIONS:
            expected = expected_one_of(str(positions), POSITIONS)
            raise InvalidInputError(f"positions is {described(positions)}, {expected}.")
        self._positions, self._centre = positions, centre
        self._model = model
        probe = as_probe((inputs, labels))
        device = model_device(model)
        # Copies, so that what the caller does to the arrays later is not measured.
        self._inputs, self._labels = (part.to(device, copy=True) for part in next(probe.batches(len(probe))))
        self._digest = probe.digest
        self._sites, logits = discover_with_logits(
            model,
            split_heads(layers)[0],
            [ACTIVATIONS],
            self._inputs,
            self._labels,
            dims=dims,
            device=device,
            output=output,
        )
        scores = class_count(logits, probe.contents.labels, needed=False) is not None
        self._tapper = Tapper(model, self._sites, device=device, output=output, scores=scores)
        self._libraries = ThreadpoolController()

    @property
    def model(self) -> nn.Module:
        """The model that is measured."""
        return self._model

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the tracked layers, in module order."""
        return tuple(site.name for site in self._sites)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what is measured of each layer."""
        return self._measures

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the values for given weights, as JSON values: two series that differ here do not mix."""
        return {
            "layers": list(self.layers),
            "measures": list(self._measures),
            "positions": self._positions,
            "centre": self._centre,
            "n_validation": len(self._labels),
            "validation_digest": self._digest,
        }

    def measure(self) -> Measurement:
        """Measure the model as it is now.

        Raises
        ------
        CaptureError
            What the model emits is not what it emitted when the tracker was made.
        """
        found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        dims = {site.name: site.dims for site in self._sites}

        def reduce(layer: str, _kind: str, tensor: torch.Tensor) -> None:
            found[layer] = second_order(sample_rows(tensor, dims[layer], self._positions), self._centre)

        with self._tapper as tapper:
            result = tapper.run(self._inputs, self._labels, reduce)
        # A second thread of NumPy's BLAS would spin for some 50 ms after the work, on a processor that training needs.
        with self._libraries.limit(limits=1, user_api="blas"):
            rows = [measured(*found[layer], len(self._labels), self._centre) for layer in self.layers]
        loss = accuracy = math.nan
        if result.loss is not None and result.prediction is not None:
            loss = result.loss.cpu().double().mean().item()
            accuracy = (result.prediction == self._labels).sum().item() / len(self._labels)
        return Measurement(loss, accuracy, {name: np.array([row[name] for row in rows]) for name in self._measures})


def _known(measures: Sequence[str]) -> tuple[str, ...]:
    names = (measures,) if isinstance(measures, str) else tuple(measures)
    if not names:
        raise InvalidInputError(f"measures is empty, expected some of {', '.join(MEASURES)}.")
    for name in names:
        if name not in MEASURES:
            raise InvalidInputError(f"No measure is called {name!r}, {expected_one_of(str(name), MEASURES)}.")
    # In one order and each once, so that neither changes what a series is.
    return tuple(name for name in MEASURES if name in names)
