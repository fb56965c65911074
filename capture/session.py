"""Session: capture a model's checkpoints one by one, from wherever its weights come.

A session finds the sites, forecasts, opens the writer, and then captures one checkpoint at a time: run every batch,
hand what comes out to the pipeline, commit. What was committed before is recognised by the digest of its weights and
not captured again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from capture.checkpoints import weights_digest
from capture.forecast import Forecast, forecast_capture, require_memory, require_room
from capture.modelstate import as_device, model_device
from capture.naming import as_names
from capture.objective import GradientOf, class_count
from capture.parameter_gradients import parameters_to_capture
from capture.passes import write_checkpoint
from capture.planning import capture_identity, check_options, plan_capture
from capture.probe import as_probe
from capture.provenance import environment, report_nonfinite, require_same_weights
from capture.series import TrackedSeries, probe_series
from capture.sites import discover_with_logits
from capture.taps import Tapper
from ndt_store.codecs import DEFAULT_PROFILE
from ndt_store.dims import GRADIENTS, PARAMETERS
from ndt_store.errors import InvalidInputError, NdtError
from ndt_store.layout import BLOCK_NBYTES
from ndt_store.reader import Store, open_store
from ndt_store.schema import as_step
from ndt_store.storage import Storage, open_storage
from ndt_store.views.flight import CheckpointSummary
from ndt_store.writer import StoreWriter

__all__ = ["Session"]


class Session:
    """Capture checkpoints of a model while it trains, or whenever its weights are right.

    Parameters
    ----------
    model : torch.nn.Module
        Any module that takes a batch and returns class scores, or anything else where neither gradients of logits nor
        logits are wanted. Left as found after each capture, also after an exception.
    data : pair of arrays, dataset or ImageData
        The probe set: (inputs, labels), or a dataset that gives (input, label).
    store : str, PathLike or Storage
        Where the store is made, or found and resumed.
    layers : sequence of str
        Globs over module paths: ``*`` stays between dots, ``**`` crosses them. One that ends in ``@heads`` means what
        each head of attention puts out: activations (checkpoint, example, token, head, unit) of a layer of that name.
    kinds : sequence of str
        ``activations``, ``gradients``, ``attentions``, or for large patterns ``attention_summaries``; beside one of
        these ``parameters``, the gradient of the mean loss in a few numbers for each parameter.
    checkpoints : sequence of int
        Steps that are planned already; any later step may be added.
    gradient_of : {"label_logit", "prediction_logit", "loss"} or callable
        The scalar of each example that is differentiated.
    dtype : {"float32", "float16", "native"}
        What is stored. ``native`` keeps each layer's own type; bfloat16 is kept exactly, as float32.
    batch_size : int
        Examples in one pass. Numbers may differ in the last bit between batch sizes, so that it is part of the
        capture's identity.
    device : torch.device or str, optional
        Where batches go; by default where the model is. The model is not moved.
    compression : str
        ``none``, ``fast`` or ``compact``.
    output : callable, optional
        From what the model returns to its class scores.
    dims : mapping, optional
        Names of the axes of a module's output by layer glob, where they cannot be inferred.
    model_name : str, optional
        What the store calls the model; by default its class.
    identity : mapping, optional
        What else makes this capture the one it is, for example the recipe's digest; compared on resume.
    block_nbytes : int
        Size in bytes at which blocks aim.
    memory : int, optional
        Bytes of host memory that batches and blocks on their way may take, beside the model; by default a quarter of
        the machine's.
    check_disk : bool
        Refuse when the capture could take more than the disk has free.
    progress : bool
        Draw a bar on stderr.

    Raises
    ------
    InvalidInputError, CaptureError
        Before the first byte: a pattern that matches nothing, a tap that never fires, labels that are no classes.
    ResumeMismatchError
        The store at this place was begun as another capture; names what differs.
    StorageError
        No room for the forecast.

    Examples
    --------
    >>> import tempfile
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> data = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Session(net, data, store=folder + "/run.zarr", layers=["*"], progress=False) as session:
    ...         for step in (0, 5):
    ...             session.track(step)
    ...             session.capture(step)
    ...     session.store.checkpoints.tolist(), session.store.training.step.values.tolist()
    ([0, 5], [0, 5])
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        *,
        store: str | os.PathLike[str] | Storage,
        layers: Sequence[str],
        kinds: Sequence[str] = ("activations",),
        checkpoints: Sequence[int] = (),
        gradient_of: GradientOf = "label_logit",
        dtype: str = "float32",
        batch_size: int = 256,
        device: torch.device | str | None = None,
        compression: str = DEFAULT_PROFILE,
        output: Callable[[Any], torch.Tensor] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        model_name: str | None = None,
        identity: Mapping[str, Any] | None = None,
        block_nbytes: int = BLOCK_NBYTES,
        memory: int | None = None,
        check_disk: bool = True,
        progress: bool = True,
    ) -> None:
        check_options(dtype, batch_size)
        self._model = model
        called = model_name or type(model).__name__
        self._storage = open_storage(store)
        self._device = model_device(model) if device is None else as_device(device)
        wanted, asked = as_names(layers, "layers"), as_names(kinds, "kinds")
        self._probe = as_probe(data)
        self._batch_size = batch_size
        self._memory = memory
        self._check_disk = check_disk
        self._progress = progress
        self._writer: StoreWriter | None = None
        self._series: TrackedSeries | None = None
        tapped = [kind for kind in asked if kind != PARAMETERS]
        inputs, labels = next(self._probe.batches(batch_size))
        options: dict[str, Any] = {"gradient_of": gradient_of, "device": self._device}
        self._sites, logits = discover_with_logits(
            model, wanted, tapped, inputs, labels, dims=dims, output=output, **options
        )
        needed = PARAMETERS in asked or (GRADIENTS in asked and gradient_of in ("label_logit", "loss"))
        n_classes = class_count(logits, self._probe.contents.labels, needed)
        self._tapper = Tapper(model, self._sites, scores=n_classes is not None, output=output, **options)
        self._schema, self._static = plan_capture(
            self._probe,
            self._sites,
            checkpoints,
            n_classes=n_classes,
            parameters=parameters_to_capture(model, n_classes) if PARAMETERS in asked else None,
            wide_logits=logits is not None and logits.dtype == torch.float64,
            dtype=dtype,
            compression=compression,
            block_nbytes=block_nbytes,
            title=f"{called} on {self._probe.name}",
        )
        known = dict(identity or {}) | capture_identity(
            model, self._probe, called, wanted, asked, gradient_of, output, dtype=dtype, batch_size=batch_size
        )
        self._provenance = {"identity": known, "environment": environment(self._device)}
        self._begin_series = partial(
            probe_series, model, self._probe, wanted, self._storage, known, dims=dims, output=output
        )

    @property
    def forecast(self) -> Forecast:
        """Bytes, memory and room, before anything is written."""
        return forecast_capture(self._schema, self._storage.path, self._batch_size)

    @property
    def store(self) -> Store:
        """The store as it is now, open for reading."""
        return open_store(self._storage)

    @property
    def committed(self) -> tuple[int, ...]:
        """Steps that are committed, of an open session."""
        return self._open_writer().committed

    def __enter__(self) -> Self:
        require_memory(self._schema, self._batch_size, self._memory)
        if self._check_disk:
            require_room(self._schema, self._storage, self._batch_size)
        self._writer = StoreWriter.open(self._storage, self._schema, static=self._static, provenance=self._provenance)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as closing:
            if self._writer is not None:
                closing.callback(self._writer.close)
            if self._series is not None:
                closing.callback(self._series.close)
            self._writer = self._series = None

    def capture(self, step: int) -> None:
        """Capture the model as it is now and commit it as checkpoint `step`.

        A step that is committed already is left alone when the model's weights are the same.

        Parameters
        ----------
        step : int
            Training step; larger than any step before unless it was planned.

        Raises
        ------
        ResumeMismatchError
            The step is committed with other weights.
        CaptureError
            What the model emits is not what it emitted at the start of the session.
        """
        self._capture_hashed(as_step(step), weights_digest(self._model.state_dict()))

    def track(self, step: int, *, loss: float = math.nan, accuracy: float = math.nan) -> None:
        """Measure the model as it is now, cheaply enough for every few steps, and append a row to ``training/``.

        Measured is as by `capture.Tracker`, on 120 examples of the probe set or all where it has fewer. Rows are safe
        within seconds, and `ndt_store.open_training` reads them meanwhile.

        Parameters
        ----------
        step : int
            Larger than that of the call before. The first call of a session may go back, as a training does that was
            killed: rows of this step and later ones are then dropped.
        loss, accuracy : float
            Of the training batch, where they are known.

        Raises
        ------
        InvalidInputError
            The step does not increase.
        ResumeMismatchError
            The store holds the series of another training.
        """
        self._open_writer()
        number = as_step(step)
        if self._series is None:
            self._series = self._begin_series()
            self._series.go_back(number - 1)
        self._series.record(number, loss, accuracy)

    def _capture_hashed(self, step: int, digest: str) -> None:
        # For capture.capture, which knows the digest already and has checked the step.
        writer = self._open_writer()
        if step in writer.committed:
            require_same_weights(writer.catalogue, step, digest)
            return
        added = step not in writer.schema.checkpoints
        if added:
            if self._check_disk:
                require_room(writer.schema.with_checkpoints((step,)), self._storage, self._batch_size)
            writer.extend([step])
        try:
            overflowed = write_checkpoint(
                writer,
                step,
                self._tapper,
                self._probe,
                summaries := CheckpointSummary(writer.catalogue),
                weights_digest=digest,
                batch_size=self._batch_size,
                device=self._device,
                progress=self._progress,
            )
            writer.commit(step, digest)
        except BaseException:
            if added:
                # What went wrong says more than why its trace could not be removed, on a full disk for one.
                with suppress(NdtError):
                    writer.abandon(step)
            raise
        summaries.keep(writer.catalogue, step)
        report_nonfinite(writer.catalogue, step, overflowed)

    def _open_writer(self) -> StoreWriter:
        if self._writer is None:
            raise InvalidInputError("The session is not open: write `with capture.Session(...) as session:`.")
        return self._writer
