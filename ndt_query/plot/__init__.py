"""Figures of results: one function a result, each returning a `matplotlib.figure.Figure` in the style of `style`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
