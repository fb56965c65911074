"""The part of the page that is about training: jumps that were planted are shown, and their absence is said."""

import re

import numpy as np
import pytest

import ndt_query as nq
from ndt_query.report_training import trained
from ndt_store import Column, IntegrityError, SeriesWriter, write_experiment
from ndt_store.testing import simulate_store

from .studies import study

LAYERS = ["fc", "out<2>"]
N = 100
TITLES = {
    "trajectories": "Participation ratio over training, with its jumps",
    "jump_nulls": "Jumps beside what noise alone gives",
    "interventions": "What interfering with the training costs",
}


def tracked_store(folder, values, name="participation_ratio", shape=(4,), **attrs):
    """A store whose training tracked values (step, layer)."""
    columns = {name: Column(("layer",)), "loss": Column(), "validation_loss": Column()}
    with SeriesWriter.open(folder, rows=columns, coords={"layer": LAYERS}, attrs=attrs) as series:
        for place, row in enumerate(values):
            loss = {"loss": np.exp(-place / 20), "validation_loss": 1.1 * np.exp(-place / 20)}
            series.append(5 * place, **{name: row}, **loss)
    return simulate_store(folder, layers={"fc": shape}).store


def page(store, tmp_path):
    return re.sub(r"\s+", " ", nq.report(store, tmp_path / "out").read_text())


@pytest.mark.parametrize(
    ("shape", "positions", "said"), [((4, 2, 2), "flatten", True), ((4, 2, 2), "mean", False), ((4,), "flatten", False)]
)
def test_positions_that_are_features_are_told_from_means(tmp_path, rng, shape, positions, said):
    store = tracked_store(tmp_path / "r.zarr", 20 + rng.standard_normal((N, 2)), shape=shape, positions=positions)
    assert ("every position is a feature of its example" in page(store, tmp_path)) is said


def test_a_planted_jump_is_drawn_and_tabulated(tmp_path, rng):
    values = 20 + rng.standard_normal((N, 2))
    values[60:, 1] += 15
    store = tracked_store(tmp_path / "run.zarr", values)
    found = trained(store)
    assert found.words == "1 jump in 100 measurements of 2 layers, step 0 to 495."
    assert [kind for kind, _ in found.figures] == ["trajectories", "jump_nulls"]
    (row,) = found.jumps
    assert (row["layer"], row["step"]) == ("out<2>", "300")
    assert float(row["size"]) == pytest.approx(15, abs=2)
    text = page(store, tmp_path)
    assert found.words in text
    assert f"<td>out&lt;2&gt;</td><td>300<small>{row['interval']}</small></td><td>{row['size']}<small>" in text
    for kind in ("trajectories", "jump_nulls"):
        assert f'alt="{TITLES[kind]}"' in text
    assert TITLES["interventions"] not in text
    assert "<dt>Jumps</dt>" in text


def test_noise_gives_no_jump_and_the_page_says_how_near_it_came(tmp_path, rng):
    store = tracked_store(tmp_path / "run.zarr", rng.standard_normal((N, 2)))
    found = trained(store)
    assert re.match(
        r"No jump in 100 measurements of 2 layers, step 0 to 495: the least p value is 0\.\d+, for the change of "
        r"(fc|out<2>) at step \d+\.$",
        found.words,
    )
    assert found.jumps == ()
    assert '<th scope="col">In noise</th>' not in page(store, tmp_path)


def test_a_training_that_cannot_be_searched_is_said_and_does_not_stop_the_page(tmp_path, rng):
    short = tracked_store(tmp_path / "short.zarr", rng.standard_normal((8, 2)))
    assert trained(short).words.startswith("Jumps were not looked for. The series has 8 measurements")
    other = tracked_store(tmp_path / "other.zarr", rng.standard_normal((N, 2)), "my_measure")
    assert "no measure 'participation_ratio'" in trained(other).words
    assert "Jumps were not looked for." in page(short, tmp_path)


def test_interventions_are_drawn_where_the_store_has_them(tmp_path, rng):
    store = simulate_store(tmp_path / "run.zarr", layers={"fc": (4,)}).store
    assert trained(store).figures == ()
    assert "While training" not in page(store, tmp_path)
    write_experiment(tmp_path / "run.zarr", "interventions", study(rng))
    again = store.refresh()
    assert [kind for kind, _ in trained(again).figures] == ["interventions"]
    assert f'alt="{TITLES["interventions"]}"' in page(again, tmp_path)


def test_a_damaged_series_is_not_passed_over(tmp_path, rng):
    store = tracked_store(tmp_path / "run.zarr", rng.standard_normal((N, 2)))
    block = next((tmp_path / "run.zarr" / "training" / "participation_ratio" / "c").rglob("0"))
    path = block if block.is_file() else next(file for file in block.rglob("*") if file.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="participation_ratio"):
        trained(store)
