"""Closed formulas in plain numpy, one family a file; the states that can be merged are in `ndt_store.views`."""
