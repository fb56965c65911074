from .activations import dead_units, top_examples
from .cams import cams, class_cams
from .composition import composed_share, composition
from .curves import growth, smoothness
from .graphs import composition_graph
from .interventions import interventions
from .measures import dimensionality, performance, selectivity
from .receptive import receptive_fields
from .style import save
from .trajectories import jump_nulls, trajectories
from .units import unit_profile, unit_types
from .waking import waking_units, woken_examples

__all__ = [
    "cams",
    "class_cams",
    "composed_share",
    "composition",
    "composition_graph",
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
    "waking_units",
    "woken_examples",
]
