from . import plot
from .activity import neuron_importance, unit_moments
from .anomalies import gradient_anomalies
from .attention import attention_distance, attention_entropy, attention_sparsity, mean_pattern
from .attribution import cam_difference, class_cams, correct_examples, grad_cam
from .compare import compare_groups, compare_runs
from .comparison_page import comparison_page, smooth_pairs
from .components import pca
from .composition import compose
from .disentanglement import disentanglement
from .filters import examples_above
from .firing import dead_units, newly_active_units
from .flow import attention_flow, attention_rollout, flow_metrics
from .gallery import cam_gallery
from .geometry import dimensionality
from .gradients import gradient_flow
from .graphml import write_graphml
from .graphs import compose_pairs, composition_graph
from .growth import fit_growth
from .heads import cluster_evolution, cluster_heads
from .importance import head_importance
from .inference import (
    Interval,
    PermutationNull,
    agreement_over_seeds,
    block_bootstrap,
    block_length,
    block_resamples,
    bootstrap_ci,
    clopper_pearson,
    effect_size,
    fdr,
    jackknife,
    mean_ci,
    paired_permutation_test,
    permutation_null,
)
from .interventions import intervention_effects
from .jump_moments import characterise_jumps, jump_schedule
from .jumps import detect_jumps
from .mlp_study import mlp_study
from .moments import schedule_pairs
from .performance import performance
from .prediction import predict_specialisation
from .probing import HeadRule, head_categories, probe_heads
from .profile import unit_profile
from .ranking import top_examples
from .receptive import receptive_field
from .report import report
from .selectivity import class_means, selectivity_index
from .similarity import cka
from .similarity_matrix import cka_matrix
from .smoothness import smoothness
from .specialisation import attention_selectivity, head_specialisation
from .study import cnn_study
from .study_pages import study_page
from .subspaces import subspace_drift, subspace_overlap
from .summary import summary
from .transformer_study import transformer_study
from .transitions import transition
from .unit_types import TypeRule, type_shares, unit_types
from .units import rank_units, unit_table
from .waking import waking_units

__all__ = [
    "HeadRule",
    "Interval",
    "PermutationNull",
    "TypeRule",
    "agreement_over_seeds",
    "attention_distance",
    "attention_entropy",
    "attention_flow",
    "attention_rollout",
    "attention_selectivity",
    "attention_sparsity",
    "block_bootstrap",
    "block_length",
    "block_resamples",
    "bootstrap_ci",
    "cam_difference",
    "cam_gallery",
    "characterise_jumps",
    "cka",
    "cka_matrix",
    "class_cams",
    "class_means",
    "clopper_pearson",
    "cluster_evolution",
    "cluster_heads",
    "cnn_study",
    "compare_groups",
    "compare_runs",
    "comparison_page",
    "compose",
    "compose_pairs",
    "composition_graph",
    "correct_examples",
    "dead_units",
    "detect_jumps",
    "dimensionality",
    "disentanglement",
    "effect_size",
    "examples_above",
    "fdr",
    "fit_growth",
    "flow_metrics",
    "grad_cam",
    "gradient_anomalies",
    "gradient_flow",
    "head_categories",
    "head_importance",
    "head_specialisation",
    "intervention_effects",
    "jackknife",
    "jump_schedule",
    "mean_ci",
    "mean_pattern",
    "mlp_study",
    "neuron_importance",
    "newly_active_units",
    "paired_permutation_test",
    "pca",
    "performance",
    "permutation_null",
    "plot",
    "predict_specialisation",
    "probe_heads",
    "rank_units",
    "receptive_field",
    "report",
    "schedule_pairs",
    "selectivity_index",
    "smooth_pairs",
    "smoothness",
    "study_page",
    "subspace_drift",
    "subspace_overlap",
    "summary",
    "top_examples",
    "transformer_study",
    "transition",
    "type_shares",
    "unit_moments",
    "unit_profile",
    "unit_table",
    "unit_types",
    "waking_units",
    "write_graphml",
]
