"""What is derived from the cubes and kept beside them: mergeable states, and the files that hold them.

A state has a neutral element, an update with one block, an associative merge and a final form. Kernels see a block as
``(checkpoint, example, token, unit, position)``: `blocks.as_block` gives any activation that form without a copy when
its memory allows. Views are never the truth: each names the commit it was made from, and can be made again.
"""
