"""The activation store: one training run's activations, gradients and attentions, labelled and verified."""
