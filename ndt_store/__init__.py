"""The activation store: activations, gradients and attentions of one training run, labelled and verified."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
