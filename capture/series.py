"""The rows of a tracker in the ``training/`` group of a store, while a network trains.

A row is safe once it was flushed. A training flushes before it saves the state that it would go on from, so that the
rows up to that state are there whenever the state is; rows beyond it are dropped when the training goes on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import torch
from torch import nn

from capture.checkpoints import weights_digest, weights_fingerprint
from capture.parameter_gradients import held_norms, parameter_names
from capture.probe import Probe
from capture.recipe import Recipe
from capture.recipe_tables import DEFAULT_N_EXAMPLES
from capture.tracking import Tracker
from ndt_store.dims import PARAMETER
from ndt_store.errors import InvalidInputError
from ndt_store.series import SeriesWriter
from ndt_store.series_plan import Column
from ndt_store.storage import Storage

__all__ = ["TrackedSeries", "Tracking", "probe_series", "recipe_tracking"]

_READ_AT_ONCE: Final = 256

_SCALARS: Final = {
    "loss": ("cross-entropy of the training batch before its update", "nat"),
    "accuracy": ("accuracy on the training batch before its update", "1"),
    "validation_loss": ("cross-entropy on the validation set", "nat"),
    "validation_accuracy": ("accuracy on the validation set", "1"),
}


@dataclass(frozen=True, slots=True)
class Tracking:
    """That a training is tracked: by what, how often, and where the rows go.

    Parameters
    ----------
    tracker : Tracker
        Of the model that is trained.
    store : str, PathLike or Storage
        A store, or where one will be.
    every : int
        Steps between measurements, the first at step 0.
    """

    tracker: Tracker
    store: str | os.PathLike[str] | Storage
    every: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise InvalidInputError(f"tracking every {self.every!r} steps: expected a whole number of at least 1.")

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it the same tracking, as JSON values."""
        return {"every": self.every, **self.tracker.identity}


def recipe_tracking(
    recipe: Recipe,
    model: nn.Module,
    store: str | os.PathLike[str] | Storage,
    data_dir: str | os.PathLike[str] | None = None,
) -> Tracking | None:
    """Make what the ``[tracking]`` of a recipe asks for, None where it has no such table.

    Raises
    ------
    NdtError
        As `Tracker` and `Recipe.tracking_data`.
    """
    asked = recipe.tracking
    if asked is None:
        return None
    images = recipe.tracking_data(data_dir)
    layers = recipe.capture.layers if asked.layers is None else asked.layers
    tracker = Tracker(model, images.inputs, images.labels, layers, measures=asked.measures, positions=asked.positions)
    return Tracking(tracker, store, asked.every)


def probe_series(
    model: nn.Module,
    probe: Probe,
    layers: Sequence[str],
    store: Storage,
    identity: Mapping[str, Any],
    **options: Any,
) -> TrackedSeries:
    """Begin or take up the series of a session: on its layers, and on some examples of its probe set.

    Up to `DEFAULT_N_EXAMPLES` are drawn, the same each time, so that neither a large probe set nor one sorted by class
    makes a difference.

    Parameters
    ----------
    model : torch.nn.Module
    probe : Probe
        Read once from end to end.
    layers : sequence of str
        Globs over module paths.
    store : Storage
    identity : mapping of str to JSON value
        The session's.
    **options
        Of `Tracker`.
    """
    n = len(probe)
    drawn = np.sort(np.random.default_rng(0).permutation(n)[:DEFAULT_N_EXAMPLES])
    inputs, labels, start = [], [], 0
    for values, classes in probe.batches(_READ_AT_ONCE):
        here = torch.from_numpy(drawn[(drawn >= start) & (drawn < start + len(classes))] - start)
        inputs.append(values[here])
        labels.append(classes[here])
        start += len(classes)
    tracker = Tracker(model, torch.cat(inputs), torch.cat(labels), layers, **options)
    return TrackedSeries(tracker, store, identity)


class TrackedSeries(AbstractContextManager["TrackedSeries"]):
    """A series that is being written: measures when it is told to, and keeps a row.

    Parameters
    ----------
    tracker : Tracker
    store : str, PathLike or Storage
    identity : mapping of str to JSON value
        What makes the training the same one, beside what the tracker says of itself.
    every : int, optional
        Steps between measurements, where there is a rule.

    Raises
    ------
    ResumeMismatchError
        The place holds the series of another training.
    NdtError
        As `ndt_store.SeriesWriter.open`.
    """

    def __init__(
        self,
        tracker: Tracker,
        store: str | os.PathLike[str] | Storage,
        identity: Mapping[str, Any],
        every: int | None = None,
    ) -> None:
        self._tracker = tracker
        self._every = every
        said = tracker.identity
        columns = {name: Column(attrs={"long_name": text, "units": unit}) for name, (text, unit) in _SCALARS.items()}
        said_of_weights = {"long_name": "first 63 bits of the SHA-256 of the weights"}
        columns |= {"weights_fingerprint": Column(dtype="int64", attrs=said_of_weights)}
        columns |= {name: Column(("layer",), attrs={"units": "1"}) for name in tracker.measures}
        of_gradients = {"long_name": "L2 norm of the gradient of the training batch before its update", "units": "1"}
        names = parameter_names(tracker.model)
        columns |= {"gradient_norm": Column((PARAMETER,), attrs=of_gradients)} if names else {}
        self._writer = SeriesWriter.open(
            store,
            rows=columns,
            coords={"layer": list(tracker.layers), **({PARAMETER: names} if names else {})},
            attrs={
                "what": "loss, accuracy and dimension of each layer's representation, tracked while training",
                **({} if every is None else {"every": every}),
                **{key: said[key] for key in ("n_validation", "positions", "centre")},
            },
            identity={**identity, "tracking": said if every is None else {"every": every, **said}},
        )

    @property
    def last_step(self) -> int | None:
        """The last step with a row, None before the first."""
        return self._writer.last_step

    def is_due(self, step: int) -> bool:
        """Whether the rule asks for a row of this step."""
        return self._every is not None and step % self._every == 0

    def reaches(self, step: int) -> bool:
        """Whether every row up to this step that the rule asks for is there; rows have no gaps."""
        assert self._every is not None
        return step == 0 or (self.last_step is not None and self.last_step >= step - step % self._every)

    def record(self, step: int, loss: float = math.nan, accuracy: float = math.nan) -> None:
        """Measure the model as it is and keep a row, safe after the next `flush`.

        Norms of gradients are of what the parameters hold in ``.grad``, NaN where that is nothing: call it before they
        are clipped, and where a loss is scaled after they are scaled back.

        Parameters
        ----------
        step : int
            Larger than any before.
        loss, accuracy : float
            Of the training batch of this step.
        """
        found = self._tracker.measure()
        self._writer.append(
            step,
            loss=loss,
            accuracy=accuracy,
            validation_loss=found.validation_loss,
            validation_accuracy=found.validation_accuracy,
            weights_fingerprint=weights_fingerprint(weights_digest(self._tracker.model.state_dict())),
            **found.dimensionality,
            **({"gradient_norm": norms} if (norms := held_norms(self._tracker.model)).size else {}),
        )

    def flush(self) -> None:
        """Make every row so far safe."""
        self._writer.flush()

    def go_back(self, step: int) -> None:
        """Drop the rows after a step; -1 drops all."""
        self._writer.truncate(step)

    def close(self) -> None:
        """Flush, and let the next writer in."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
