"""Numerical kernels in plain numpy: mergeable states and closed formulas, one family a file.

Every kernel sees a block as ``(checkpoint, example, token, unit, position)``: `as_block` gives any activation that
form without a copy when its memory allows. Labels, dask and files live elsewhere.
"""
