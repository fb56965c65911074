"""The tables of compared runs, from what a study leaves in a folder."""

import pytest

import ndt_query as nq
from benchmarks import run_comparison
from ndt_store.testing import simulate_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("study")
    stores = {}
    for seed in range(2):
        for name in ("mlp_narrow", "other"):
            stores[f"{name}-seed{seed}"] = simulate_store(
                made / f"{name}-seed{seed}.zarr", checkpoints=range(0, 210, 10), n_examples=30, seed=seed,
                layers={"relu": (8,), "classifier": (3,)}, n_tracked=40, n_parameters=3,
            ).store  # fmt: skip
    compared = nq.compare_runs(stores, groups=["mlp_narrow", "other"] * 2)
    nq.comparison_page(compared, made, smooth=nq.smooth_pairs(stores, compared))
    study = nq.mlp_study(stores["mlp_narrow-seed0"], k=2)
    nq.study_page(study, made / "mlp_narrow-seed0-report" / "mlp")
    return made, compared, study


def rows(text, title):
    part = text.split(f"**{title}")[1].split("**")[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.strip().splitlines()[2:]]


def test_tables__say_what_the_study_left(folder):
    made, compared, study = folder
    text = run_comparison.tables(made)
    groups = {row[0]: row[1:] for row in rows(text, "Groups")}
    area = nq.compare_groups(compared)["area"].values
    assert [cell.split(" ")[0] for cell in groups["mean accuracy over the steps that all runs measured"]] == [
        f"{value:.3g}" for value in area
    ]
    events = rows(text, "Jumps of dimension")
    assert [row[0] for row in events] == compared["run"].values.tolist()
    assert [int(row[2]) for row in events] == compared["n_jumps"].astype(int).values.tolist()
    assert [row[0] for row in rows(text, "Variance of the derivatives")] == ["mlp_narrow over other"]
    changes = rows(text, "Did classes come apart")
    assert [row[1] for row in changes] == study["transition"]["measure"].values.tolist()
    assert [row[2] for row in changes] == study["transition"]["change"].values.tolist()
    assert {row[0] for row in changes} == {"mlp_narrow-seed0"}
