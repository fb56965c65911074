"""receptive_fields(): what units can see of the input by theory, and what they do see, checkpoint by checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from capture.checkpoints import check_weights
from capture.effective_fields import Probing, crop_of, effective_maps
from capture.field_experiment import EXPERIMENT, Frame, as_dataset, held_fields
from capture.field_theory import AXES, theoretical_fields
from capture.given_weights import Weights, digests_of, given_checkpoints, kept_apart, load_given, weights_kept
from capture.modelstate import as_device, model_device, refuse_inference_weights
from capture.naming import Site
from capture.probe import Probe, as_probe
from capture.sites import discover_sites
from ndt_store.dims import ACTIVATIONS, EXAMPLE, UNIT
from ndt_store.errors import CaptureError, InvalidInputError
from ndt_store.experiments import write_experiment
from ndt_store.progress import progress_bar
from ndt_store.storage import Storage

__all__ = ["receptive_fields"]

Units = int | Mapping[str, Sequence[int]] | None
_READ: Final = 256


def receptive_fields(
    model: nn.Module,
    data: Any,
    *,
    layers: Sequence[str],
    store: str | os.PathLike[str] | Storage | None = None,
    checkpoints: Sequence[tuple[int, Weights]] | str | os.PathLike[str] | None = None,
    n_examples: int = 64,
    n_groups: int = 16,
    units: Units = 16,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    replace: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Find the theoretical receptive fields of layers, and measure the effective ones of their central units.

    The theoretical field follows from one pass in which every operator says what its output can depend on; names and
    types of modules play no part. Where branches meet it is their union; over the units of a layer, which see different
    windows where branches are concatenated, it is the union as well. Batch norm in evaluation mode, activations and
    dropout look at each value alone. What takes statistics over positions (group, instance and layer norm over space),
    gates channels by a global pool, attends, or flattens into a linear layer, sees the whole input.

    The effective field of a unit is the mean over examples of the absolute gradient of its value at the layer's central
    position (``size // 2``), with respect to the input, added up over input channels (Luo et al. 2016).

    Parameters
    ----------
    model : torch.nn.Module
        Takes images (example, channel, y, x) or series (example, channel, x), floating point. Its weights and
        everything else about it are afterwards as they were before.
    data : pair of arrays, dataset or ImageData
        As in `capture.Session`.
    layers : sequence of str
        Globs over module paths. Layers of units, over positions (y, x) or x or without any, are taken; others that
        match are left out and named in the attribute ``left_out``.
    store : str, PathLike or Storage, optional
        A store to write the result into, as the experiment ``receptive_fields``.
    checkpoints : sequence of (step, state dict or file), or folder, optional
        By default the model as it is, as step 0; as in `capture.capture`.
    n_examples : int
        Examples of the effective fields, taken evenly from the data; all where there are fewer.
    n_groups : int
        Groups of examples whose means are kept, from which intervals are made; at most `n_examples`.
    units : int, mapping of layer to units, or None
        How many units of each layer, taken evenly; or which, for layers by name; or all.
    batch_size : int
        Examples that go through the model together; memory is that of their graph.
    device : str or torch.device, optional
        Where the model is by default.
    replace : bool
        Put the result in the place of another that the store holds.
    progress : bool
        Draw a bar on stderr.

    Returns
    -------
    Dataset
        Theory, over (layer, axis), axis being "y" and "x", or "x" alone, in input positions:

        ``size``, ``stride``, ``offset``
            Positions that a unit sees, padding included; between neighbouring units; and of the centre of unit (0, 0),
            where 0 is the first pixel. NaN where ``reason`` (layer) says why.
        ``kind`` (layer)
            "sliding": every unit sees a window of one size. "global": all see the same, the size is what there is of
            it, the stride is 0. "unknown".
        ``position``
            Of the central unit, -1 in a layer without positions.
        ``first``, ``last``
            First and last input position that it sees; of sliding windows they may lie outside of the input.

        Measured, over (step, layer, unit), where ``unit`` counts the units that were chosen and ``unit_index`` (layer,
        unit) says which they are, -1 where a layer has fewer than others:

        ``effective`` (..., field_row, field_column), float32
            Mean over examples. It is cropped to the theoretical field: row 0 is input row ``crop_start`` (layer,
            axis), of which there are ``crop_size``; beyond them NaN. Of series without ``field_row``.
        ``row_mass`` (..., group, field_row), ``column_mass`` (..., group, field_column)
            Mean over the examples of a group, added up over columns, and over rows.

        ``group_size`` (group), ``input_size`` (axis), ``weights_digest`` (step). NaN nowhere else: a unit that is
        silent for all examples, as a dead one is, has a map of zeros.

    Raises
    ------
    InvalidInputError
        An option is not possible, or the inputs are no images or series.
    CaptureError
        The model cannot be probed (see `capture.sites.discover_sites`), or no layer that matches has units over
        positions.
    AlreadyExistsError
        The store holds other receptive fields.
    ResumeMismatchError
        A step is committed in the store with other weights.
    NdtError
        As `capture.capture` does for checkpoints and data.

    Notes
    -----
    Costs, for each checkpoint, a forward pass of the examples and for each unit of each layer a backward pass of them
    from that layer down; once, a pass of one example with eight numbers beside each value. The result holds, for each
    checkpoint, layer and unit, a map of the largest crop.

    References
    ----------
    W. Luo, Y. Li, R. Urtasun, R. Zemel, "Understanding the effective receptive field in deep convolutional neural
    networks", NeurIPS 2016. A. Araujo, W. Norris, J. Sim, "Computing receptive fields of convolutional neural
    networks", Distill 2019.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3), nn.Flatten())
    >>> data = torch.rand(8, 1, 12, 12), torch.zeros(8, dtype=torch.int64)
    >>> fields = receptive_fields(net, data, layers=["0", "1", "2"], progress=False)
    >>> fields["size"].sel(axis="y").values.tolist(), fields["stride"].sel(axis="y").values.tolist()
    ([3.0, 4.0, 8.0], [1.0, 2.0, 2.0])
    >>> fields["effective"].dims
    ('step', 'layer', 'unit', 'field_row', 'field_column')
    """
    counts = {"n_examples": n_examples, "n_groups": n_groups, "batch_size": batch_size}
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise InvalidInputError(f"{name} is {value!r}: expected a whole number of at least 1.")
    steps = given_checkpoints(checkpoints)
    for _, weights in steps:
        if weights is not None:
            check_weights(model, weights)
    refuse_inference_weights(model)
    place = model_device(model) if device is None else as_device(device)
    probe = as_probe(data)
    inputs, groups = _examples(probe, n_examples, n_groups)
    probings, left_out = _probings(model, layers, inputs, units, place)
    steps = [(step, kept_apart(model, weights)) for step, weights in steps]
    with weights_kept(model, any(weights is not None for _, weights in steps)):
        digests = digests_of(model, steps, store)
        frame = Frame(tuple(step for step, _ in steps), digests, tuple(probings), groups, tuple(inputs.shape[2:]))
        attrs = {"data": probe.name, "data_digest": probe.digest, "n_examples": len(inputs), "left_out": left_out}
        held = None if store is None or replace else held_fields(store, frame, attrs)
        if held is not None:
            return held
        maps = []
        n_passes, n_done = len(steps) * -(-len(inputs) // batch_size) * sum(len(one.units) for one in probings), 0
        with progress_bar("receptive fields", show=progress) as bar:

            def advance(n_made: int) -> None:
                nonlocal n_done
                n_done += n_made
                bar(n_done, n_passes)

            for _, weights in steps:
                load_given(model, weights)
                maps.append(
                    effective_maps(
                        model, inputs, probings, groups, batch_size=batch_size, device=place, advance=advance
                    )
                )
    found = as_dataset(frame, maps, attrs)
    if store is not None:
        write_experiment(store, EXPERIMENT, found, replace=replace)
    return found


def _examples(probe: Probe, n_examples: int, n_groups: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Take examples evenly, and put them into groups by chance: neighbours may be of one class."""
    shape = probe.contents.inputs.shape
    if len(shape) - 2 not in AXES:
        raise InvalidInputError(
            f"The inputs have shape {tuple(shape)}: receptive fields are those of images (example, channel, y, x) or "
            "series (example, channel, x)."
        )
    n = min(n_examples, len(probe))
    rows = np.arange(n) * len(probe) // n
    parts, start = [], 0
    for batch, _ in probe.batches(_READ):
        parts.append(batch[rows[(rows >= start) & (rows < start + len(batch))] - start].clone())
        start += len(batch)
    inputs = torch.cat(parts)
    if not inputs.is_floating_point():
        raise InvalidInputError(
            f"The inputs are {inputs.dtype}: receptive fields need gradients of them, so give floating point numbers."
        )
    return inputs, np.random.default_rng(0).permutation(n) % min(n_groups, n)


def _probings(
    model: nn.Module, layers: Sequence[str], inputs: Tensor, units: Units, device: torch.device
) -> tuple[list[Probing], list[str]]:
    """Find what is to be measured, and the names of layers that match and have no units over positions."""
    n_axes = inputs.ndim - 2
    sites = discover_sites(model, layers, [ACTIVATIONS], inputs, device=device)
    fitting = [site for site in sites if site.dims in ((EXAMPLE, UNIT), (EXAMPLE, UNIT, *AXES[n_axes]))]
    left_out = [site.name for site in sites if site not in fitting]
    if not fitting:
        raise CaptureError(
            f"None of the layers {', '.join(left_out[:3])} has units over positions ({', '.join(AXES[n_axes])}), or "
            "units alone, which have receptive fields: name convolutional layers."
        )
    chosen = _chosen(fitting, units)
    fields = theoretical_fields(model, inputs, fitting, device)
    return [
        Probing(site, fields[site.name], chosen[site.name], crop_of(fields[site.name], inputs.shape[2:]))
        for site in fitting
    ], left_out


def _chosen(sites: Sequence[Site], units: Units) -> dict[str, tuple[int, ...]]:
    sizes = {site.name: site.shape[site.dims.index(UNIT) - 1] for site in sites}
    if isinstance(units, Mapping):
        unknown = sorted(set(units) - set(sizes))
        if unknown:
            raise InvalidInputError(f"units names layer {unknown[0]!r}: the layers are {', '.join(sizes)}.")
        given = {name: tuple(units[name]) if name in units else tuple(range(n)) for name, n in sizes.items()}
        for name, wanted in given.items():
            wrong = [unit for unit in wanted if not isinstance(unit, int | np.integer) or not 0 <= unit < sizes[name]]
            if wrong or not wanted or len(set(wanted)) != len(wanted):
                raise InvalidInputError(
                    f"units of layer {name!r} are {list(wanted)}: expected some of 0 to {sizes[name] - 1}, each once."
                )
        return {name: tuple(map(int, wanted)) for name, wanted in given.items()}
    if units is not None and (not isinstance(units, int) or units < 1):
        raise InvalidInputError(f"units is {units!r}: expected a number of units, units by layer, or None for all.")
    counts = {name: n if units is None else min(units, n) for name, n in sizes.items()}
    return {name: tuple((np.arange(k) * sizes[name] // k).tolist()) for name, k in counts.items()}
