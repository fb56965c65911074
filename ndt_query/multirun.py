"""Answers of several runs: a question is asked of each, and what is said is stacked along ``run``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

from ndt_store.dims import RUN
from ndt_store.runs import Runs, RunView

__all__ = ["over_runs", "stack_runs"]


def over_runs(runs: Runs, ask: Callable[[RunView], Any]) -> Any:
    """Ask each run, at the layers and checkpoints that all have, and stack the answers."""
    return stack_runs({name: ask(runs.select(name)) for name in runs})


def stack_runs(answers: Mapping[str, Any]) -> Any:
    """Put answers along ``run``: Datasets, or trees of them node by node."""
    first = next(iter(answers.values()))
    if isinstance(first, xr.Dataset):
        return _stacked(answers)
    paths = [node.path for node in first.subtree if node.has_data]
    nodes = {path: _stacked({run: one[path].to_dataset() for run, one in answers.items()}) for path in paths}
    return xr.DataTree.from_dict(nodes)


def _stacked(answers: Mapping[str, xr.Dataset]) -> xr.Dataset:
    return xr.concat(
        list(answers.values()), dim=xr.Variable((RUN,), list(answers)), data_vars="all", coords="minimal",
        compat="override", join="outer", combine_attrs="drop_conflicts",
    )  # fmt: skip
