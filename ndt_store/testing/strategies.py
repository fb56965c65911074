"""Hypothesis strategies for stores: layers of any shape, and any basic index into an array."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

__all__ = ["basic_indices", "layer_shapes"]

_NAMES = st.text(
    st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters="/\\"), min_size=1, max_size=12
).filter(lambda name: set(name) != {"."} and not name.startswith("__"))


def layer_shapes(max_layers: int = 3) -> st.SearchStrategy[dict[str, tuple[int, ...]]]:
    """Layers as `simulate_store` takes them: names, and shapes (unit,), (token, unit) or (unit, y, x)."""
    shape = st.integers(1, 3).flatmap(lambda rank: st.tuples(*[st.integers(1, 6)] * rank))
    return st.dictionaries(_NAMES, shape, min_size=1, max_size=max_layers)


def basic_indices(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Tuples of integers and forward slices that numpy accepts for an array of this shape."""
    parts = []
    for size in shape:
        slices = st.builds(
            slice,
            st.none() | st.integers(-size - 1, size + 1),
            st.none() | st.integers(-size - 1, size + 1),
            st.none() | st.integers(1, 3),
        )
        parts.append(slices | st.integers(-size, size - 1) if size else slices)
    return st.integers(0, len(shape)).flatmap(lambda n: st.tuples(*parts[:n]))
