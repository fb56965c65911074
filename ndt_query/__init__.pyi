from . import plot
from .activity import neuron_importance, unit_moments
from .filters import examples_above
from .firing import dead_units, newly_active_units
from .geometry import dimensionality
from .growth import fit_growth
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
from .performance import performance
from .ranking import top_examples
from .receptive import receptive_field
from .report import report
from .selectivity import class_means, selectivity_index
from .smoothness import smoothness
from .summary import summary

__all__ = [
    "Interval",
    "PermutationNull",
    "agreement_over_seeds",
    "block_bootstrap",
    "block_length",
    "block_resamples",
    "bootstrap_ci",
    "characterise_jumps",
    "class_means",
    "clopper_pearson",
    "dead_units",
    "detect_jumps",
    "dimensionality",
    "effect_size",
    "examples_above",
    "fdr",
    "fit_growth",
    "intervention_effects",
    "jackknife",
    "jump_schedule",
    "mean_ci",
    "neuron_importance",
    "newly_active_units",
    "paired_permutation_test",
    "performance",
    "permutation_null",
    "plot",
    "receptive_field",
    "report",
    "selectivity_index",
    "smoothness",
    "summary",
    "top_examples",
    "unit_moments",
]
