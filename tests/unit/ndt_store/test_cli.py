"""Commands print results on stdout, words on stderr, and end with the documented exit codes."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ndt_store import Column, SeriesWriter, write_experiment
from ndt_store.cli import main
from ndt_store.testing import simulate_store


@pytest.fixture
def store(tmp_path):
    planted = np.ones((3, 12, 10), np.float32)
    planted[2, 0, :3] = np.nan
    return simulate_store(tmp_path / "s.zarr", planted={"layers/fc/activations": planted}).store


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_info_says_what_the_store_is(store, capsys):
    code, out, err = run(capsys, "info", store.path, "--format", "json")
    facts = {row["what"]: row["value"] for row in json.loads(out)}
    assert (code, err) == (0, "")
    assert facts["model"] == "simulated"
    assert facts["checkpoints"] == "3 of 3 committed, 0 to 100"
    assert facts["layers"] == "3: conv1, blocks.0, fc"
    assert facts["complete"] == "yes"


def test_info_ls_and_verify_tell_what_lies_beside_the_cubes(tmp_path, capsys):
    path = simulate_store(tmp_path / "s", n_tracked=4, n_parameters=3).store.path
    write_experiment(path, "head_ablation", xr.Dataset({"x": 1}))
    write_experiment(path, "again", xr.Dataset({"x": 1}))
    _, out, _ = run(capsys, "info", path, "--format", "json")
    facts = {row["what"]: row["value"] for row in json.loads(out)}
    assert facts["parameters"] == "gradients of 3"
    assert facts["training"] == "4 rows, step 0 to 15"
    assert facts["experiments"] == "again, head_ablation"
    _, out, err = run(capsys, "ls", path, "--format", "json")
    assert len(json.loads(out)) == 6
    said = "parameters: gradients of 3; training: 4 rows, step 0 to 15; experiments: again, head_ablation"
    assert err == f"Beside the layers: {said}.\n"
    code, out, _ = run(capsys, "verify", path, "--read-data")
    assert code == 0
    assert "3 commits, 3 beside the cubes," in out
    (tmp_path / "s" / "training" / "loss" / "c" / "0").unlink()
    code, out, _ = run(capsys, "verify", path)
    assert code == 1
    assert "training/loss/c/0" in out


def test_commands_on_a_training_without_a_capture_say_what_to_do(tmp_path, capsys):
    SeriesWriter.open(tmp_path / "s", rows={"loss": Column()}).close()
    code, _, err = run(capsys, "info", tmp_path / "s")
    assert code == 2
    assert "holds what was tracked while training and no capture yet" in err


def test_ls_lists_shapes_and_what_is_not_finite(store, capsys):
    code, out, _ = run(capsys, "ls", store.path, "--layer", "f*", "--checkpoint", "10:100", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [(row["layer"], row["kind"], row["shape"], row["nan"]) for row in rows] == [
        ("fc", "activations", "2 x 12 x 10", "3"),
        ("fc", "gradients", "2 x 12 x 10", "0"),
    ]


@pytest.mark.parametrize("output_format", ["table", "json", "csv"])
def test_every_format_holds_every_row(store, capsys, output_format):
    _, out, _ = run(capsys, "ls", store.path, "--format", output_format)
    assert all(out.count(layer) >= 2 for layer in store.layers)


def test_verify_of_a_whole_store_exits_0(store, capsys):
    code, out, _ = run(capsys, "verify", store.path, "--read-data")
    assert code == 0
    assert "everything is as committed" in out


def test_verify_of_a_damaged_store_exits_1_and_names_the_block(store, capsys, tmp_path):
    key = store.catalogue.record(10).arrays["layers/fc/activations"].blocks[0].key
    (tmp_path / "s.zarr" / key).unlink()
    code, out, err = run(capsys, "verify", store.path, "--format", "json")
    (finding,) = json.loads(out)
    assert (code, finding["block"], finding["severity"]) == (1, key, "damaged")
    assert "1 findings" in err


def test_verify_of_an_unfinished_store_exits_1(tmp_path, capsys):
    simulate_store(tmp_path / "u", n_committed=1)
    code, out, _ = run(capsys, "verify", tmp_path / "u", "--format", "json")
    assert (code, json.loads(out)[0]["severity"]) == (1, "incomplete")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("info", "{tmp}/none"), 2, "does not exist"),
        (("ls", "{store}", "--layer", "conv9"), 2, "no layer like 'conv9'"),
        (("ls", "{store}", "--checkpoint", "60"), 2, "no checkpoint 60: the nearest are 10 and 100"),
        (("ls", "{store}", "--checkpoint", "200:300"), 2, "No checkpoint lies in 200:300"),
        (("ls", "{store}", "--checkpoint", "soon"), 2, "is no selector"),
        (("ls", "{store}", "--nonsense"), 2, "No such option"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(store, tmp_path, capsys, arguments, code, words):
    given = [part.format(tmp=tmp_path, store=store.path) for part in arguments]
    got, out, err = run(capsys, *given)
    assert (got, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback_and_keeps_the_exit_code(tmp_path, capsys):
    code, _, err = run(capsys, "--debug", "info", tmp_path / "none")
    assert code == 2
    assert "Traceback" in err
    assert "does not exist" in err.splitlines()[-1]


def test_names_are_printed_as_they_are_and_never_steer_the_terminal(tmp_path, capsys):
    path = tmp_path / "runs[demo].zarr"
    simulate_store(path, layers={"[/b]": (3,), "x[red]": (2,)})
    code, out, _ = run(capsys, "ls", path)
    assert code == 0
    assert "[/b]" in out
    assert "x[red]" in out
    assert "[demo]" in run(capsys, "info", path)[1]
    assert "x[red]" in run(capsys, "ls", path, "--layer", "x[red]", "--format", "csv")[1]
    from ndt_store.cliparts import emit

    emit([{"a": "\x1b]0;title\x07"}], "table")
    assert "\x1b" not in capsys.readouterr().out


def test_info_imports_nothing_heavy(store):
    program = (
        "import sys\nfrom ndt_store.cli import main\n"
        f"try:\n    main(['info', {store.path!r}])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'xarray', 'zarr', 'dask', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_and_option_says_what_it_is_for():
    import click

    from ndt_store.cli import cli

    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command.help, name
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help, f"{name} {parameter.name}"


@pytest.mark.parametrize("missing", ["pydantic", "torch"])
@pytest.mark.parametrize("command", ["plan", "train", "capture", "demo"])
def test_commands_that_run_a_model_say_what_to_install(tmp_path, command, missing):
    arguments = [command] if command == "demo" else [command, "demo"]
    program = f"import sys\nsys.modules[{missing!r}] = None\nfrom ndt_store.cli import main\nmain({arguments!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 3
    assert f"needs {missing}: pip install '.[capture]' in a clone of ndt-activations" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_step_that_a_table_prints_can_be_pasted_into_a_selector(tmp_path, capsys):
    path = tmp_path / "s"
    simulate_store(path, checkpoints=(0, 100_000, 2_000_000))
    from ndt_store.cliparts import emit

    emit([{"checkpoint": 2_000_000}], "table")
    printed = capsys.readouterr().out.split()[-1]
    code, out, _ = run(capsys, "ls", path, "--checkpoint", printed, "--format", "json")
    assert code == 0
    assert json.loads(out)[0]["shape"].startswith("1 x")


def test_index_makes_views_once_and_says_what_they_take(store, capsys):
    code, out, _ = run(capsys, "index", store.path, "--layer", "fc", "--checkpoint", "100")
    assert code == 0
    assert "views of 2 arrays and checkpoints made, 0 were there" in out
    _, out, _ = run(capsys, "index", store.path)
    assert "views of 16 arrays and checkpoints made, 2 were there" in out
    _, out, _ = run(capsys, "index", store.path, "--force")
    assert "views of 18 arrays and checkpoints made, 0 were there" in out


def test_index_of_a_damaged_store_exits_1_and_names_the_block(store, capsys):
    entry = store.catalogue.record(0).arrays["layers/fc/activations"].blocks[0]
    (store.catalogue.storage.root / entry.key).unlink()
    code, _, err = run(capsys, "index", store.path)
    assert code == 1
    assert f"Block {entry.key} of array layers/fc/activations" in err


def test_a_damaged_view_is_found_by_verify_and_costs_nothing(store, capsys):
    run(capsys, "index", store.path)
    path = store.catalogue.storage.root / "views/topk/fc/activations/10"
    path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = run(capsys, "verify", store.path, "--read-data")
    assert code == 0
    assert "views/topk/fc/activations/10 is damaged" in " ".join(out.split())
    code, out, _ = run(capsys, "verify", store.path)
    assert (code, "everything is as committed" in out) == (0, True)
    run(capsys, "index", store.path)
    code, out, _ = run(capsys, "verify", store.path, "--read-data")
    assert (code, "everything is as committed" in out) == (0, True)


@pytest.mark.parametrize(
    ("view", "made_by"), [("moments", ["index"]), ("gram-flatten", ["index", "--gram", "flatten"])]
)
def test_the_advice_for_a_damaged_view_mends_it(store, capsys, view, made_by):
    from ndt_store import ViewWarning, open_store
    from ndt_store.views.frame import frame_of
    from ndt_store.views.gram_view import GRAM_VIEWS
    from ndt_store.views.kinds import MomentsView
    from ndt_store.views.shelf import load

    run(capsys, "index", store.path, "--gram", "flatten")
    path = store.catalogue.storage.root / f"views/{view}/fc/activations/10"
    path.write_bytes(path.read_bytes()[:-1])
    advice = f"`{' '.join(['ndt', *made_by])}`"
    _, out, _ = run(capsys, "verify", store.path, "--read-data", "--format", "json")
    assert json.loads(out)[0]["message"].endswith(f"{advice} makes it again.")
    catalogue = open_store(store.path).catalogue
    frame = frame_of(catalogue, store.schema.find("layers/fc/activations"))
    with pytest.warns(ViewWarning, match=f"{advice} replaces it"):
        load(catalogue, frame, 10, MomentsView if view == "moments" else GRAM_VIEWS["flatten"])
    command, *options = made_by
    run(capsys, command, store.path, *options)
    _, out, _ = run(capsys, "verify", store.path, "--read-data", "--format", "json")
    assert json.loads(out) == []


@pytest.mark.parametrize(("filters", "shown"), [("always", True), ("ignore", False)])
def test_warnings_of_other_packages_are_as_the_user_set_them(store, filters, shown):
    """Also where they are laid at the door of one of our modules, as by `stacklevel`."""
    program = (
        f"import warnings\nwarnings.simplefilter({filters!r})\n"
        "import ndt_store.cli as ours\n"
        "def noisy(store):\n"
        "    warnings.warn_explicit('theirs', UserWarning, 'theirs.py', 7, module='ndt_store.reader')\n"
        "    return opened(store)\n"
        f"opened, ours.open_store = ours.open_store, noisy\nours.main(['info', {store.path!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert ("theirs.py:7: UserWarning: theirs" in done.stderr) == shown
    assert "ndt:" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_to_a_full_disk_is_one_sentence(store):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ndt_store", "ls", store.path], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 3
    assert done.stderr.startswith("ndt: The system refused")
    assert "Traceback" not in done.stderr
