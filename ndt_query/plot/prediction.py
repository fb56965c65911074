"""Figure of a prediction: what heads came to be, against what early training said of them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ndt_query.plot.style import SINGLE_COLUMN, layer_colours, layer_legend, styled, tail
from ndt_store.errors import DimensionError

__all__ = ["predicted_specialisation"]


@styled
def predicted_specialisation(result: xr.Dataset) -> Figure:
    """Draw the specialisation of each head against its held-out prediction, a panel for each way of holding out.

    Parameters
    ----------
    result : Dataset
        From `ndt_query.predict_specialisation`.

    Returns
    -------
    Figure
        At most double column; a dot is a head, a colour a layer. Above: R2, that of the layer alone, and p.

    Raises
    ------
    DimensionError
        The Dataset has no prediction.
    """
    if "predicted" not in result or "scheme" not in result.dims:
        raise DimensionError("The result has no predicted over scheme: pass that of predict_specialisation.")
    schemes = [str(one) for one in result["scheme"].values if np.isfinite(result["r2"].sel(scheme=one))]
    figure = Figure(figsize=((SINGLE_COLUMN - 0.4) * max(1, len(schemes)) + 1.0, 2.8), layout="constrained")
    panels = figure.subplots(1, max(1, len(schemes)), squeeze=False, sharey=True)[0]
    layers = list(dict.fromkeys(str(one) for one in result["layer_of"].values))
    colours = layer_colours(layers)
    ends = [float(result["observed"].min()), float(result["observed"].max())]
    for axes, scheme in zip(panels, schemes, strict=False):
        one = result.sel(scheme=scheme)
        for layer in layers:
            here = result["layer_of"].values == layer
            axes.plot(
                one["predicted"].values[here], result["observed"].values[here], "o", color=colours[layer],
                label=tail(layer, 26), markersize=3.5,
            )  # fmt: skip
        axes.plot(ends, ends, color="#9a9a9a", linewidth=0.7)
        axes.set_xlabel("predicted, bits")
        said = f"R2 {float(one['r2']):.2f}, layer alone {float(one['layer_r2']):.2f}, p {float(one['p_value']):.2g}"
        axes.set_title(f"held out: {scheme}\n{said}", fontsize=6.5)
    panels[0].set_ylabel("divergence from other heads, bits")
    layer_legend(figure, panels[0])
    return figure
