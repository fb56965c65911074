"""Capture: run a model on a probe set at its checkpoints and write what happens inside into a store."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
