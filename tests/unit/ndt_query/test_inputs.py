"""What a question refuses, and how it says so."""

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.inputs import as_classes, canonical
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

from .sources import labelled


@pytest.fixture
def acts(rng):
    return labelled(rng.random((2, 6, 4, 3, 3)))


def test_canonical__orders_dims_and_adds_a_missing_checkpoint(acts):
    found, squeezed = canonical(acts.transpose("x", "unit", "example", "y", "checkpoint"))
    assert found.dims == ("checkpoint", "example", "unit", "y", "x")
    assert not squeezed
    found, squeezed = canonical(acts.sel(checkpoint=100))
    assert found.dims == ("checkpoint", "example", "unit", "y", "x")
    assert squeezed


def test_question__of_one_checkpoint_answers_without_that_dimension(acts):
    one = nq.unit_moments(acts.sel(checkpoint=100))
    assert one["mean"].dims == ("unit",)
    assert one["checkpoint"].item() == 100
    xr.testing.assert_allclose(one, nq.unit_moments(acts).sel(checkpoint=100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.rename(unit="channel"), r"expected example and unit.*rename or reduce channel"),
        (lambda a: a.isel(unit=0, drop=True), r"expected example and unit.*unit"),
        (lambda a: a.isel(example=slice(0, 0)), r"empty along example"),
    ],
)
def test_question__refuses_wrong_dims(acts, change, message):
    with pytest.raises(DimensionError, match=message):
        nq.unit_moments(change(acts))


def test_question__refuses_what_is_not_a_real_number(acts):
    with pytest.raises(InvalidInputError, match="complex128: expected real numbers"):
        nq.unit_moments(acts.astype(complex))


def test_question__refuses_what_is_not_labelled():
    with pytest.raises(InvalidInputError, match="got ndarray"):
        nq.unit_moments(np.zeros((2, 3)))


def test_as_classes__sorts_labels_and_counts_from_zero(acts):
    found = as_classes(acts, ["cat", "dog", "cat", "ant", "dog", "dog"])
    assert found.names.tolist() == ["ant", "cat", "dog"]
    assert found.codes.tolist() == [1, 2, 1, 0, 2, 2]


def test_as_classes__takes_the_coordinate_without_further_word(acts):
    assert as_classes(acts, None).codes.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(NotFoundError, match="pass labels="):
        as_classes(acts.drop_vars("label"), None)


def test_as_classes__matches_labelled_examples_whatever_their_order(acts):
    more = xr.DataArray(np.arange(20), dims="example", coords={"example": np.arange(20)})
    found = as_classes(acts, more.isel(example=slice(None, None, -1)))
    assert found.names.tolist() == acts["example"].values.tolist()


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([0, 1, 0], DimensionError, r"shape \(3,\) where the array has 6 examples"),
        ([[0], [1], [0], [1], [0], [1]], DimensionError, "give one label each"),
        (
            [0, 1, np.nan, 1, 0, np.nan],
            InvalidInputError,
            r"missing \(NaN\) at 2 of 6 examples, the first at position 2",
        ),
        (["a", None, "a", "b", "b", "b"], InvalidInputError, r"missing \(NaN\) at 1 of 6"),
        ([3, 3, 3, 3, 3, 3], InvalidInputError, "all .*3.*two or more"),
        (xr.DataArray([0, 1] * 3, dims="row"), DimensionError, r"dims \('row',\)"),
        (
            xr.DataArray([0, 1] * 3, dims="example", coords={"example": np.arange(6) * 2 + 7}),
            InvalidInputError,
            "labels lack 1 of the array's 6 examples, the first is example 5",
        ),
    ],
)
@pytest.mark.parametrize("ask", [nq.class_means, nq.selectivity_index])
def test_question__refuses_labels_that_do_not_fit(acts, ask, labels, kind, message):
    with pytest.raises(kind, match=message):
        ask(acts, labels)


def test_top_examples__refuses_identifiers_that_are_not_whole_numbers(acts):
    with pytest.raises(InvalidInputError, match="expected whole numbers"):
        nq.top_examples(acts.assign_coords(example=np.arange(6) / 2))


@pytest.mark.parametrize(
    "ask",
    [
        lambda a: nq.top_examples(a, k=0),
        lambda a: nq.selectivity_index(a, statistic="anova"),
        lambda a: nq.selectivity_index(a, n_permutations=-1),
        lambda a: nq.dimensionality(a, positions="max"),
        lambda a: nq.dimensionality(a, interval="exact"),
        lambda a: nq.dimensionality(a, n_groups=1),
        lambda a: nq.dead_units(a, threshold=-1.0),
        lambda a: nq.dead_units(a, threshold=np.nan),
        lambda a: nq.newly_active_units(a, 0, 100, min_rate=1.0),
    ],
)
def test_question__refuses_options_that_make_no_sense(acts, ask):
    with pytest.raises(InvalidInputError, match="expected|give 0 or more"):
        ask(acts)


def test_as_classes__refuses_labels_of_several_types():
    with pytest.raises(InvalidInputError, match="labels mix int and str"):
        nq.class_means(labelled(np.ones((1, 4, 1))), np.array([1, "a", 1, "a"], dtype=object))


def test_as_classes__refuses_dates_that_are_missing():
    dates = np.array(["2020", "NaT", "2021", "2020"], dtype="datetime64[Y]")
    with pytest.raises(InvalidInputError, match="missing .NaN. at 1 of 4"):
        nq.class_means(labelled(np.ones((1, 4, 1))), dates)


def test_as_classes__names_the_only_class_plainly():
    with pytest.raises(InvalidInputError, match="labels are all 3: "):
        nq.class_means(labelled(np.ones((1, 4, 1))), [3, 3, 3, 3])
