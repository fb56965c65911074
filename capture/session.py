"""Session: capture a model's checkpoints one by one, from wherever its weights come.

A session finds the sites, forecasts, opens the writer, and then captures one checkpoint at a time: run every batch,
hand what comes out to the pipeline, commit. What was committed before is recognised by the digest of its weights and
not captured again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import nn

from capture._describe import described
from capture.checkpoints import weights_digest
from capture.forecast import Forecast, forecast_capture, require_memory
from capture.identity import callable_name, structure_digest
from capture.modelstate import as_device, model_device
from capture.objective import GradientOf, class_count, class_logits, model_output
from capture.passes import write_checkpoint
from capture.probe import as_probe
from capture.provenance import environment, report_nonfinite, require_same_weights, warn_of_narrowing
from capture.site_checks import PROBES
from capture.sites import discover_sites
from capture.taps import Tapper
from ndt_store.catalogue import Catalogue
from ndt_store.codecs import DEFAULT_PROFILE
from ndt_store.dims import GRADIENTS
from ndt_store.errors import InvalidInputError, NdtError
from ndt_store.layout import BLOCK_NBYTES
from ndt_store.planning import Tap, plan_store
from ndt_store.reader import Store, open_store
from ndt_store.root import has_store
from ndt_store.schema import Schema, as_step
from ndt_store.storage import Storage, open_storage
from ndt_store.views.flight import CheckpointSummary
from ndt_store.writer import StoreWriter

__all__ = ["Session"]

_DTYPES: Final = ("float32", "float16", "native")


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
        Globs over module paths: ``*`` stays between dots, ``**`` crosses them.
    kinds : sequence of str
        ``activations``, ``gradients``, ``attentions``.
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
    ...             session.capture(step)
    ...     session.store.checkpoints.tolist()
    [0, 5]
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
        if dtype not in _DTYPES:
            raise InvalidInputError(f"dtype is {dtype!r}: expected one of {', '.join(_DTYPES)}.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InvalidInputError(f"batch_size is {batch_size!r}: expected a whole number of at least 1.")
        self._model = model
        self._storage = open_storage(store)
        self._device = model_device(model) if device is None else as_device(device)
        wanted, asked = _names(layers, "layers"), _names(kinds, "kinds")
        self._probe = as_probe(data)
        self._batch_size = batch_size
        self._memory = memory
        self._check_disk = check_disk
        self._progress = progress
        self._writer: StoreWriter | None = None
        inputs, labels = next(self._probe.batches(batch_size))
        options: dict[str, Any] = {"gradient_of": gradient_of, "device": self._device}
        said: list[torch.Tensor] = []

        def listen(raw: Any) -> torch.Tensor:
            said.append(model_output(raw, output))
            return said[-1]

        self._sites = discover_sites(model, wanted, asked, inputs, labels, dims=dims, output=listen, **options)
        logits = class_logits(said[-1].detach(), PROBES[0])
        needed = GRADIENTS in asked and gradient_of in ("label_logit", "loss")
        n_classes = class_count(logits, self._probe.contents.labels, needed)
        self._tapper = Tapper(model, self._sites, scores=n_classes is not None, output=output, **options)
        if dtype == "float32":
            warn_of_narrowing(self._sites)
        taps = [
            Tap(site.name, site.kind, site.dims, site.shape, stored, site.module_type)
            for site in self._sites
            for stored in [site.dtype if dtype == "native" else dtype]
        ]
        wide = dtype == "native" and logits is not None and logits.dtype == torch.float64
        self._schema, self._static = plan_store(
            [as_step(step) for step in checkpoints],
            self._probe.contents,
            taps,
            n_classes=n_classes,
            logits_dtype="float64" if wide else "float32",
            codec=compression,
            block_nbytes=block_nbytes,
            attrs={"title": f"{model_name or type(model).__name__} on {self._probe.name}"},
        )
        own = {
            "model": model_name or type(model).__name__,
            "model_structure": structure_digest(model),
            "data": self._probe.name,
            "dataset_digest": self._probe.digest,
            "layers": wanted,
            "kinds": asked,
            "gradient_of": callable_name(gradient_of),
            "output": callable_name(output),
            "dtype": dtype,
            "batch_size": batch_size,
        }
        self._provenance = {"identity": {**(identity or {}), **own}, "environment": environment(self._device)}

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
        self._require_room(self._schema)
        self._writer = StoreWriter.open(self._storage, self._schema, static=self._static, provenance=self._provenance)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

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

    def _capture_hashed(self, step: int, digest: str) -> None:
        # For capture.capture, which knows the digest already and has checked the step.
        writer = self._open_writer()
        if step in writer.committed:
            require_same_weights(writer.catalogue, step, digest)
            return
        added = step not in writer.schema.checkpoints
        if added:
            self._require_room(writer.schema.with_checkpoints((step,)))
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

    def _require_room(self, schema: Schema) -> None:
        if not self._check_disk:
            return
        committed = Catalogue.read(self._storage).committed if has_store(self._storage) else ()
        remaining = schema.with_checkpoints(tuple(step for step in schema.checkpoints if step not in committed))
        if remaining.checkpoints:
            forecast_capture(remaining, self._storage.path, self._batch_size).require_room(self._storage.path)


def _names(given: Iterable[str], what: str) -> list[str]:
    """Sort names and drop repetitions: neither changes what is captured. A generator is read once, here."""
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(name, str) for name in names):
        raise InvalidInputError(f"{what} is {described(given)}: expected names, as in {what}=['...'].")
    return sorted(set(names))
