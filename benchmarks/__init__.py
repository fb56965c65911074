"""Figures with their baselines in the same run; `make bench` runs them all."""
