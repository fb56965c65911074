"""What is kept of attention patterns that are too large to keep: a few numbers an example and head, and the mean.

Everything is taken from the probabilities of one call while they are on the device, before the next module runs, so
that no pattern outlives its own. The definitions are those of `ndt_query.attention`, which says them in full.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from ndt_store.dims import EXAMPLE_SUMMARIES, MEAN_PATTERN

__all__ = ["SHARE_ABOVE", "summarised"]

SHARE_ABOVE: Final = 0.1


def summarised(probabilities: torch.Tensor) -> dict[str, torch.Tensor]:
    """Reduce the patterns of one batch.

    Parameters
    ----------
    probabilities : torch.Tensor (example, head, query, key)
        Rows sum to 1, or are 0 throughout where a query attends to nothing; such rows are left out.

    Returns
    -------
    dict of str to torch.Tensor
        `EXAMPLE_SUMMARIES`, each (example, head), float32 or what the probabilities are: means over queries, NaN
        where no query attends; entropy and Hoyer sparsity are NaN where there is one key. `MEAN_PATTERN`, (head, query,
        key), float64: the *sum* over the examples of the batch.

    Notes
    -----
    Time O(example * head * query * key * log(key)), memory of one more pattern.
    """
    n_queries, n_keys = probabilities.shape[-2:]
    total = probabilities.sum(-1)
    attends = total != 0
    apart = torch.arange(n_queries, device=probabilities.device)[:, None]
    apart = (apart - torch.arange(n_keys, device=probabilities.device)).abs().to(probabilities.dtype)
    many = math.nan if n_keys == 1 else 1.0
    root = math.sqrt(n_keys)
    ranks = torch.arange(1, n_keys + 1, device=probabilities.device, dtype=probabilities.dtype)
    rows = {
        "attention_entropy": many * torch.special.entr(probabilities).sum(-1) / max(math.log(n_keys), 1e-30),
        "attention_hoyer": many * (root - total / probabilities.norm(dim=-1)) / max(root - 1, 1e-30),
        "attention_gini": 2 * (probabilities.sort(-1).values @ ranks) / (n_keys * total) - (n_keys + 1) / n_keys,
        "attention_share": (probabilities > SHARE_ABOVE).to(probabilities.dtype).mean(-1),
        "attention_distance": (probabilities * apart).sum(-1),
    }
    found = {name: torch.where(attends, rows[name], 0).sum(-1) / attends.sum(-1) for name in EXAMPLE_SUMMARIES}
    return {**found, MEAN_PATTERN: probabilities.sum(0, dtype=torch.float64)}
