"""Small pictures of inputs and maps as pixels, for pages that show hundreds of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.images import as_images
from ndt_query.pages import picture_source
from ndt_store.dims import EXAMPLE
from ndt_store.errors import NotFoundError

__all__ = ["DIFFERENCES", "MAPS", "Tiles", "as_tiles", "scale_picture"]

Pixels = NDArray[np.uint8]

MAPS: Final = "viridis"
DIFFERENCES: Final = "RdBu_r"
SIDE: Final = 64
GAP: Final = 2
NOT_A_NUMBER: Final = (204, 121, 167)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Inputs as pictures of one size.

    Parameters
    ----------
    examples : ndarray of int64 (example,)
    pixels : ndarray of uint8 (example, row, column, 3)
    """

    examples: NDArray[np.int64]
    pixels: Pixels

    def of(self, example: int) -> Pixels:
        """Return the picture of one example."""
        place = np.flatnonzero(self.examples == example)
        if not place.size:
            raise NotFoundError(f"The inputs lack example {example}: pass the whole probe set.")
        return _sized(self.pixels[place[0]])

    @staticmethod
    def of_map(values: NDArray[Any], limit: float) -> Pixels:
        """Draw a map (y, x) from 0 to `limit`."""
        return _sized(_coloured(values / (limit or 1.0), MAPS))

    @staticmethod
    def of_difference(values: NDArray[Any], limit: float) -> Pixels:
        """Draw a difference or signed map (y, x) on a symmetric scale from -limit to limit."""
        return _sized(_coloured(0.5 + 0.5 * values / (limit or 1.0), DIFFERENCES))

    @staticmethod
    def stacked(tiles: Sequence[Pixels]) -> Pixels:
        """Put pictures of one size below each other, with white between them."""
        gap = np.full((GAP, tiles[0].shape[1], 3), 255, np.uint8)
        parts = [part for tile in tiles for part in (tile, gap)]
        return np.concatenate(parts[:-1])


def as_tiles(inputs: xr.DataArray) -> Tiles | None:
    """Make pictures of inputs, see `ndt_query.images`, all on one scale; None where they are no images.

    All inputs that are given are loaded: select those that will be shown.
    """
    images = as_images(np.asarray(inputs.transpose(EXAMPLE, ...).values, dtype=np.float64))
    if images is None:
        return None
    values = np.moveaxis(images, 1, -1)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    grey = np.nan_to_num((values - low) / ((high - low) or 1.0))
    pixels = np.broadcast_to(np.round(255 * grey), (*values.shape[:-1], 3)).astype(np.uint8)
    return Tiles(np.asarray(inputs[EXAMPLE].values, dtype=np.int64), pixels)


def scale_picture() -> dict[str, str]:
    """Return the two colour scales as sources of images, from left to right."""
    ramp = np.broadcast_to(np.linspace(0, 1, 160), (12, 160))
    return {"maps": picture_source(_coloured(ramp, MAPS)), "differences": picture_source(_coloured(ramp, DIFFERENCES))}


def _coloured(values: NDArray[Any], name: str) -> Pixels:
    """Colour values from 0 to 1; what is not a number gets a colour that neither scale has."""
    found: Pixels = mpl.colormaps[name](np.clip(values, 0, 1), bytes=True)[..., :3]
    found[~np.isfinite(values)] = NOT_A_NUMBER
    return found


def _sized(pixels: Pixels) -> Pixels:
    """Bring a picture to `SIDE` pixels a side, each of its own pixels a rectangle."""
    rows, columns = (np.arange(SIDE) * size // SIDE for size in pixels.shape[:2])
    return pixels[np.ix_(rows, columns)]
