from .activations import dead_units, top_examples
from .cams import cams, class_cams
from .curves import growth, smoothness
from .interventions import interventions
from .measures import dimensionality, performance, selectivity
from .receptive import receptive_fields
from .style import save
from .trajectories import jump_nulls, trajectories
from .units import unit_profile, unit_types

__all__ = [
    "cams",
    "class_cams",
    "dead_units",
    "dimensionality",
    "growth",
    "interventions",
    "jump_nulls",
    "performance",
    "receptive_fields",
    "save",
    "selectivity",
    "smoothness",
    "top_examples",
    "trajectories",
    "unit_profile",
    "unit_types",
]
