"""Both sides of second-order statistics against dense float64 numpy."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ndt_store.views.gram import add_products, finished, sample_gram, sample_spectrum
from ndt_store.views.samples import packed, unpacked
from ndt_store.views.scatter import merge_scatter, scatter, scatter_of, scatter_spectrum


def direct(samples):
    y = samples - samples.mean(axis=0)
    squared = (y * y).sum(axis=1)
    return {"mean": samples.mean(axis=0), "matrix": y.T @ y, "cubic": squared @ y, "fourth": (squared**2).sum()}


def squared_singular(samples, centre):
    exact = samples.astype(np.float64)
    return np.linalg.svd(exact - exact.mean(axis=0) * centre, compute_uv=False) ** 2


def check_spectrum(found, samples, centre):
    largest = np.sort(found.eigenvalues)[::-1][: min(samples.shape)]
    np.testing.assert_allclose(largest, squared_singular(samples, centre), rtol=1e-9, atol=1e-6)
    sums = direct(samples.astype(np.float64))
    assert found.n == len(samples)
    assert found.trace == pytest.approx(np.trace(sums["matrix"]))
    assert found.trace_square == pytest.approx((sums["matrix"] ** 2).sum())
    assert found.fourth == pytest.approx(sums["fourth"])


def test_merge_scatter__equals_sums_over_all_samples(rng):
    samples = rng.standard_normal((1, 40, 1, 6)) * np.arange(1, 7) + 100
    groups = np.arange(40) % 3
    parts = [scatter(samples[:, part], groups[part], 3) for part in (slice(0, 1), slice(1, 17), slice(17, 40))]
    merged = merge_scatter(merge_scatter(parts[0], parts[1]), parts[2])
    for g in range(3):
        for name, expected in direct(samples[0, groups == g, 0]).items():
            np.testing.assert_allclose(getattr(merged[0][g], name), expected, rtol=1e-9, err_msg=name)
    whole = merge_scatter(merge_scatter(merged[0][0], merged[0][1]), merged[0][2])
    for name, expected in direct(samples[0, :, 0]).items():
        np.testing.assert_allclose(getattr(whole, name), expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (300, 20)], ids=str)
@pytest.mark.parametrize("centre", [True, False])
def test_spectrum__of_either_side_equals_squared_singular_values(rng, shape, centre):
    samples = rng.standard_normal(shape, dtype=np.float32) + 10
    check_spectrum(scatter_spectrum(scatter_of(samples), centre), samples, centre)
    check_spectrum(sample_spectrum(sample_gram(samples), centre), samples, centre)


@pytest.mark.parametrize("centre", [True, False])
def test_sample_spectrum__of_some_samples_is_as_if_there_were_no_others(rng, centre):
    samples = rng.standard_normal((10, 40)) + 3
    kept = np.array([0, 2, 3, 7, 9])
    check_spectrum(sample_spectrum(sample_gram(samples), centre, kept), samples[kept], centre)


def test_sample_spectrum__survives_a_mean_far_above_the_spread(rng):
    samples = 1e8 + rng.standard_normal((20, 50))
    found = np.sort(sample_spectrum(sample_gram(samples), True).eigenvalues)[::-1]
    np.testing.assert_allclose(found[:19], squared_singular(samples - 1e8, True)[:19], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
def test_add_products__in_tiles_about_the_mean_of_the_first_equal_products_about_the_mean_of_all(rng, dtype):
    samples = (rng.standard_normal((700, 33)) * 4 + np.repeat([[0.0], [30.0]], 350, axis=0)).astype(dtype)
    exact = samples.astype(np.float64)
    about, tiles = exact[:300].mean(axis=0), [slice(0, 300), slice(300, 310), slice(310, 700)]
    products, with_about = np.zeros((700, 700)), np.zeros(700)
    with ThreadPoolExecutor(2) as pool:
        for at, tile in enumerate(tiles):
            add_products(products[tile, tile], samples[tile], None, about, with_about[tile], pool)
            for other in tiles[at + 1 :]:
                add_products(products[tile, other], samples[tile], samples[other], about, pool=pool)
    found = finished(products, with_about, about, 0)
    y, mean = exact - exact.mean(axis=0), exact.mean(axis=0)
    np.testing.assert_allclose(unpacked(found.products, 700), y @ y.T, rtol=1e-10, atol=1e-8)
    np.testing.assert_allclose(found.with_mean, y @ mean, rtol=1e-10, atol=1e-8)
    assert found.mean_square == pytest.approx(mean @ mean)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sample_gram__of_what_is_not_finite_is_unknown_and_counts_nan(rng, bad):
    samples = rng.standard_normal((6, 9))
    samples[4, 2] = samples[5, 8] = bad
    found = sample_spectrum(sample_gram(samples), True)
    assert np.isnan(found.eigenvalues).all()
    assert found.nan_count == (2 if np.isnan(bad) else 0)


def test_unpacked__gives_back_a_symmetric_matrix_and_any_part_of_it(rng):
    matrix = rng.standard_normal((7, 7))
    matrix += matrix.T
    np.testing.assert_array_equal(unpacked(packed(matrix), 7), matrix)
    kept = [1, 2, 6]
    np.testing.assert_array_equal(unpacked(packed(matrix), 7, kept), matrix[np.ix_(kept, kept)])
