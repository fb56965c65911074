from .activations import dead_units, top_examples
from .measures import dimensionality, selectivity
from .style import save

__all__ = ["dead_units", "dimensionality", "save", "selectivity", "top_examples"]
