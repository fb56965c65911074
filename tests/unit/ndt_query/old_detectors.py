"""The two detectors of the study that this software replaces, kept to show their false alarms. Not for use."""

import numpy as np
from scipy.ndimage import uniform_filter1d


def global_z(values, threshold=2.0):
    """Positions where the gradient of the smoothed series is far from its own mean: a steep curve is all jumps."""
    gradient = np.gradient(uniform_filter1d(np.asarray(values, float), 5))
    return np.flatnonzero((gradient - gradient.mean()) / gradient.std() > threshold)


def trailing_z(values, threshold=3.0, window=50):
    """Positions far from the mean of the 50 before: 350 tests at 0.3% each, and a mean that a jump itself shifts."""
    values = np.asarray(values, float)
    before = np.lib.stride_tricks.sliding_window_view(values, window)[:-1]
    z = (values[window:] - before.mean(axis=1)) / before.std(axis=1)
    return np.flatnonzero(np.abs(z) > threshold) + window
