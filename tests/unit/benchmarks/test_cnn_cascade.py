"""The tables of the CNN's cascade say what the report's numbers say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from benchmarks import cnn_cascade
from ndt_store.testing import simulate_store

STEPS, N = (0, 10, 40), 120
LAYERS = {"relu1": (8, 4, 4), "relu2": (6, 4, 4), "relu3": (5, 2, 2)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> cnn_cascade.CnnRun:
    rng = np.random.default_rng(4)
    early = np.maximum(rng.standard_normal((3, N, 8, 4, 4)), 0)
    early[2][np.arange(N) % 3 == 1, :6] += 6
    early[0, :, 7] = 0
    late = np.maximum(rng.standard_normal((3, N, 5, 2, 2)), 0)
    late[1:, :, 0] = early[1:, :, [6, 7]].mean((3, 4)).sum(2)[..., None, None]
    store = simulate_store(
        tmp_path_factory.mktemp("cascade") / "r.zarr", checkpoints=STEPS, n_examples=N, kinds=("activations",),
        layers=LAYERS, planted={"layers/relu1/activations": early, "layers/relu3/activations": late},
    ).store  # fmt: skip
    field = xr.Dataset(
        {"layer_width": (("step", "axis"), [[2.0, 4.0], [1.0, 2.0]]), "size": ("axis", [5, 5])}, {"step": [0, 40]}
    )
    return cnn_cascade.CnnRun(3, nq.cnn_study(store), Path(), Path(), dict.fromkeys(LAYERS, field))


def rows(text: str, title: str) -> list[list[str]]:
    part = next(
        one for one in text.split("**") if one.startswith("\n\n|") and f"**{title}" in text.split(one)[0][-400:]
    )
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.strip().splitlines()[2:]]


def test_tables__say_what_the_study_found(run: cnn_cascade.CnnRun) -> None:
    text = cnn_cascade.tables([run, run])
    assert ["relu1", "0% (0%, 37%) to 75% (35%, 97%)", "0% (0%, 37%) to 75% (35%, 97%)"] in rows(
        text, "Units that tell"
    )
    halves = {row[0]: row[1] for row in rows(text, "Half of that rise")}
    assert halves == {"relu1": "limits overlap", "relu2": "limits overlap", "relu3": "limits overlap"}
    woken = {(row[0], row[1]): row[2] for row in rows(text, "Dead units that wake up")}
    assert woken["relu1", "0 and 10"] == "1 of 1"
    assert ("relu2", "10 and 40") not in woken  # no unit was dead
    assert ["relu1 to relu3", "0 of 5 to 1 of 5", "0 of 5 to 1 of 5"] in rows(text, "Units composed")
    assert ["relu2", "3.0 to 1.5 of 5", "3.0 to 1.5 of 5"] in rows(text, "Width of what")
    assert list(dict.fromkeys(row[0] for row in rows(text, "Kinds of units"))) == list(LAYERS)
    kinds = [row for row in rows(text, "Kinds of units") if row[0] == "relu2"]
    shares = np.array([[float(one.strip("%")) for one in row[2].split(" to ")] for row in kinds])
    np.testing.assert_allclose(shares.sum(axis=0), 100, atol=2)


def test_tables__have_a_column_for_each_seed(run: cnn_cascade.CnnRun) -> None:
    text = cnn_cascade.tables([run, cnn_cascade.CnnRun(7, run.study, Path(), Path(), run.fields)])
    heads = [line for line in text.splitlines() if line.endswith("| seed 3 | seed 7 |")]
    assert len(heads) == 7
