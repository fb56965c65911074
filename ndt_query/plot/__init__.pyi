from .activations import dead_units, top_examples
from .attention import attention_measures, attention_patterns, head_specialisation
from .cams import cams, class_cams
from .compare import compare_runs
from .composition import composed_share, composition
from .curves import growth, smoothness
from .disentangled import disentanglement
from .flow import attention_flow, bottlenecks
from .geometry import components, subspace_drift, subspace_overlap
from .gradients import gradient_anomalies, gradient_flow
from .graphs import composition_graph
from .heads import head_clusters, head_importance
from .interventions import interventions
from .measures import dimensionality, performance, selectivity
from .prediction import predicted_specialisation
from .receptive import receptive_fields
from .similarity import cka_matrix
from .study import emergence, hierarchy
from .style import save
from .trajectories import jump_nulls, trajectories
from .units import unit_profile, unit_types
from .waking import waking_units, woken_examples

__all__ = [
    "attention_flow",
    "attention_measures",
    "attention_patterns",
    "bottlenecks",
    "cams",
    "cka_matrix",
    "class_cams",
    "compare_runs",
    "components",
    "composed_share",
    "composition",
    "composition_graph",
    "dead_units",
    "dimensionality",
    "disentanglement",
    "emergence",
    "gradient_anomalies",
    "gradient_flow",
    "growth",
    "head_clusters",
    "head_importance",
    "head_specialisation",
    "hierarchy",
    "interventions",
    "jump_nulls",
    "performance",
    "predicted_specialisation",
    "receptive_fields",
    "save",
    "selectivity",
    "smoothness",
    "subspace_drift",
    "subspace_overlap",
    "top_examples",
    "trajectories",
    "unit_profile",
    "unit_types",
    "waking_units",
    "woken_examples",
]
