"""Between which checkpoints half of a rise has happened."""

import numpy as np

from ndt_query.emerging import half_risen

STEPS = np.array([0, 10, 20, 30])


def halves(share, width=0.01):
    share = np.asarray(share, float)[:, None]
    return tuple(float(one[0]) for one in half_risen(STEPS, share, share - width, share + width))


def test_half_risen__is_the_first_step_at_half_and_the_one_before():
    assert halves([0.0, 0.1, 0.6, 1.0]) == (20, 10)


def test_half_risen__is_nan_where_limits_overlap_or_a_value_is_not_known():
    assert np.isnan(halves([0.0, 0.1, 0.2, 0.3], width=0.2)).all()
    assert np.isnan(halves([0.0, np.nan, 0.6, 1.0])).all()
    assert np.isnan(halves([np.nan] * 4)).all()
