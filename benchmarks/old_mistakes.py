"""`python -m benchmarks.old_mistakes`: what the study that this software replaces got wrong, on data of known truth.

The old ways are in `old_ways`, the data in `old_cases`. Tables and a figure of both go into
``docs/explanation/old-mistakes.md``. With ``--quick`` few data sets of each kind, and nothing is kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import old_rows
from benchmarks.__main__ import machine
from benchmarks.old_cases import Found, gathered
from benchmarks.old_pictures import draw
from benchmarks.quote import put_between
from ndt_query.plot import save

__all__ = ["BEGIN", "END", "MISTAKES", "PAGE", "Mistake", "main", "page_text"]

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "explanation" / "old-mistakes.md"
PICTURE: Final = PAGE.parent / "figures" / "old-mistakes.png"
BEGIN: Final = "<!-- mistakes: written by `python -m benchmarks.old_mistakes` -->"
END: Final = "<!-- end of mistakes -->"

QUICK: Final = 10
FULL: Final = 200


@dataclass(frozen=True)
class Mistake:
    """One mistake, as the page tells it.

    Parameters
    ----------
    panels : str
        Letters of its panels in the figure.
    name : str
        A short title.
    done, why, here : str
        What was done, why that is wrong, and what is done here.
    functions : tuple of str
        Of `ndt_query`, that give the number here.
    guards : tuple of str
        Tests in ``tests/unit/ndt_query`` that keep it so, ``FILE::TEST``, besides the one of `gallery_test`.
    gallery_test : str
        In ``tests/unit/benchmarks/test_old_mistakes.py``.
    rows : callable
        From everything found to the rows of the table.
    """

    panels: str
    name: str
    done: str
    why: str
    here: str
    functions: tuple[str, ...]
    guards: tuple[str, ...]
    gallery_test: str
    rows: Callable[[Found], list[old_rows.Row]]


MISTAKES: Final = (
    Mistake(
        "a",
        "The spectral norm was a Frobenius norm",
        "Stable rank was the squared Frobenius norm over the squared spectral norm, and the spectral norm was computed "
        "as the Frobenius norm again.",
        "The 2-norm of a matrix is its largest singular value, that of its values in one line is the root of the sum "
        "of their squares. A number over itself is 1, whatever the network does.",
        "the eigenvalues of the covariance are computed, and their sum is divided by the largest.",
        ("dimensionality",),
        ("test_geometry.py::test_dimensionality__equals_singular_values",),
        "test_stable_rank__is_not_one_whatever_the_data",
        old_rows.of_ranks,
    ),
    Mistake(
        "b",
        "The mean was left in",
        "Stable rank was computed of activations whose mean is not zero.",
        "The mean is one direction with the square of its length. Units after a ReLU have means above zero: the mean "
        "outweighs all else and holds the rank at 1.",
        "the mean is taken off, and `centre=False`, which asks for the other number, is recorded in the result.",
        ("dimensionality",),
        (
            "test_geometry.py::test_dimensionality__of_raw_relu_data_is_held_at_one_by_the_mean",
            "test_geometry.py::test_dimensionality__of_a_small_variation_about_a_large_mean_is_measured",
        ),
        "test_stable_rank__does_not_know_the_mean",
        old_rows.of_ranks_off_centre,
    ),
    Mistake(
        "c, d",
        "z > 2 on a gradient",
        "A jump was where the gradient of the smoothed series is more than two standard deviations above its mean.",
        "Two standard deviations are exceeded by chance, once in 44 independent values: the more measurements, the "
        "more jumps. A curve that is steep at first and flat later has a gradient far above its mean all along the "
        "steep part. Most trainings begin so: an early cascade of jumps follows from the method.",
        "a jump has to beat series that are simulated from the smooth curve and the noise of the same series, with the "
        "false discovery rate over all layers.",
        ("detect_jumps",),
        (
            "test_jumps.py::test_noise__gives_nothing_and_says_what_came_nearest",
            "test_jumps.py::test_curves_without_noise__have_no_jumps",
            "test_jumps.py::test_series_without_a_jump__give_one_in_at_most_5_percent",
        ),
        "test_global_z__fires_on_noise_and_on_a_smooth_curve",
        old_rows.of_global_z,
    ),
    Mistake(
        "e",
        "z > 3 against the last 50",
        "A jump was where a value lies more than three standard deviations from the mean of the 50 before it.",
        "Each of 350 measurements is tested at 0.3% or more, and nothing allows for their number: most series of noise "
        "are hit somewhere. After a jump every measurement of the new level is far from the window's mean, until the "
        "window has followed: one jump is hit again and again, and where its own measurement falls short by chance, a "
        "later one is reported.",
        "a change is held against the strongest of whole simulated series; hits that belong together are one jump; its "
        "position is the one of greatest likelihood and has an interval.",
        ("detect_jumps",),
        (
            "test_jumps.py::test_hits_within_three_measurements__are_one_jump",
            "test_jumps.py::test_planted_jumps_of_four_deviations__are_found_within_one_measurement",
        ),
        "test_trailing_z__fires_on_noise_and_again_after_a_jump",
        old_rows.of_trailing_z,
    ),
    Mistake(
        "f",
        "An index was taken for a step",
        "The position of a jump in the list of measurements was compared with training steps.",
        "With a measurement each 5 steps, 400 indices end at a fifth of 2,000 steps. No jump could be late, whatever "
        "the data: that there are none was no finding.",
        "positions are labels: training steps travel with the series, and the phase is the step over the last step.",
        ("detect_jumps", "characterise_jumps"),
        (
            "test_jumps.py::test_one_large_jump__is_found_at_its_step",
            "test_jumps.py::test_steps__are_labels_and_need_not_be_even",
        ),
        "test_phase__is_of_steps_and_not_of_indices",
        old_rows.of_phases,
    ),
    Mistake(
        "g",
        "Probes were scored on their training data",
        "R2 of a ridge regression was that of the examples it was fitted to.",
        "128 coefficients fit 160 examples of anything. The same holds for the accuracy of a classifier.",
        "every score is of examples that had no part in the fit nor in the choice of the penalty, beside the same for "
        "shuffled examples. `probe_heads` and `disentanglement` hold examples out alike.",
        ("compose",),
        (
            "test_composition.py::test_compose__of_noise_composes_nothing_where_the_in_sample_score_is_high",
            "test_composition.py::test_compose__equals_the_nested_search_of_scikit_learn",
        ),
        "test_probes__do_not_predict_noise",
        old_rows.of_probes,
    ),
    Mistake(
        "h",
        "Maps were scaled before they were subtracted",
        "Grad-CAM of each image and checkpoint was divided by its own largest value, and then subtracted.",
        "The divisors differ. Where a new place comes up, one that stayed the same seems to fade; where the "
        "whole map grows, nothing seems to happen.",
        'raw maps are subtracted; `scale="joint"` divides both by one number.',
        ("grad_cam", "cam_difference"),
        (
            "test_attribution.py::test_cam_difference__is_of_raw_maps",
            "test_attribution.py::test_cam_difference__of_maps_that_differ_by_a_factor_is_not_nothing",
        ),
        "test_cam_difference__is_not_of_maps_scaled_one_by_one",
        old_rows.of_cams,
    ),
    Mistake(
        "i",
        "CKA was biased",
        "CKA was computed from centred products of few examples.",
        "With d units and n examples, independent representations have a biased CKA near d / (d + n). Every pair of "
        "wide layers is alike, and the wider, the more.",
        "HSIC (the numerator and the squares of the denominator) is estimated without bias, beside shuffled examples.",
        ("cka", "cka_matrix"),
        ("test_similarity.py::test_cka__of_independent_data_is_zero_where_the_biased_one_is_not",),
        "test_cka__of_independent_data_is_zero",
        old_rows.of_similarities,
    ),
)
"""In the order of the figure."""


def page_text(found: Found, said: str) -> str:
    """Return what stands between the marks of the page: the table, the figure, and each mistake."""
    lines = [BEGIN, "", "| | measured | noted | the old way | here |", "|---|---|---|---|---|"]
    for mistake in MISTAKES:
        for place, row in enumerate(mistake.rows(found)):
            lines.append(f"| {mistake.panels if place == 0 else ''} | {' | '.join(row)} |")
    n = len(found.noise.old)
    lines += ["", f"Means where a number is of several; {n} series or pairs of each kind. {said}"]
    lines += ["", f"![what each mistake gets wrong](figures/{PICTURE.name})"]
    for mistake in MISTAKES:
        functions = ", ".join(f"`{name}`" for name in mistake.functions)
        guards = [f"`{guard}`" for guard in mistake.guards]
        lines += ["", f"### {mistake.panels}. {mistake.name}", "", f"{mistake.done} {mistake.why}", ""]
        lines += [f"Here ({functions}): {mistake.here}", ""]
        lines += [f"Guarded by `test_old_mistakes.py::{mistake.gallery_test}`, {', '.join(guards)}."]
    return "\n".join([*lines, "", END])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page's part, and keep what is not quick."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.old_mistakes", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} data sets of each kind; nothing is kept")
    quick = parser.parse_args(arguments).quick
    start = time.perf_counter()
    found = gathered(QUICK if quick else FULL)
    where = "{cpu}, {cores} cores, {day}".format(**machine())
    text = page_text(found, f"Made in {time.perf_counter() - start:.0f} s on {where}.")
    print(text)
    if not quick:
        put_between(PAGE, BEGIN, END, text)
        save(draw(found), PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
