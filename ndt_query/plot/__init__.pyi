from .activations import dead_units, top_examples
from .measures import dimensionality, performance, selectivity
from .style import save
from .trajectories import jump_nulls, trajectories

__all__ = [
    "dead_units",
    "dimensionality",
    "jump_nulls",
    "performance",
    "save",
    "selectivity",
    "top_examples",
    "trajectories",
]
