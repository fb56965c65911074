from .activations import dead_units, top_examples
from .measures import dimensionality, performance, selectivity
from .style import save

__all__ = ["dead_units", "dimensionality", "performance", "save", "selectivity", "top_examples"]
