"""The demo leaves what it promises, and the README shows what is true."""

from __future__ import annotations

import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ndt_store import open_store, verify
from tests.e2e.conftest import ndt

README = Path(__file__).parents[2] / "README.md"


def test_the_demo_store_is_whole_and_plain_xarray_sees_the_same(demo):
    path = demo.folder / "runs" / "demo.zarr"
    store = open_store(path)
    assert verify(store, read_data=True).ok
    assert len(store.checkpoints) == 6
    plain = xr.open_datatree(path, engine="zarr")
    assert plain["layers/relu4"].activations.sel(checkpoint=300).dims == ("example", "unit", "y", "x")
    xr.testing.assert_identical(plain.load(), store.tree.load())


def test_what_was_captured_is_what_the_trained_model_computes(demo):
    import torch

    import capture

    recipe = capture.load_recipe("demo")
    data = recipe.probe_data()
    model = recipe.build_model(data).eval()
    step, file = capture.list_checkpoints(demo.folder / "runs" / "demo-checkpoints")[-1]
    model.load_state_dict(capture.load_weights(file))
    store = open_store(demo.folder / "runs" / "demo.zarr")
    # The batch as the capture ran it: other sizes may choose other kernels.
    x = torch.from_numpy(data.inputs[:256])
    outputs = {}
    for name, module in model.named_children():
        x = module(x)
        outputs[name] = x
        x.retain_grad()
    x.gather(1, torch.from_numpy(data.labels[:256])[:, None]).sum().backward()
    for layer in store.layers:
        got = store[layer].sel(checkpoint=step).isel(example=slice(0, 256))
        np.testing.assert_allclose(got.activations.values, outputs[layer].detach().numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got.gradients.values, outputs[layer].grad.numpy(), rtol=1e-4, atol=1e-7)


def test_the_network_learned(demo):
    store = open_store(demo.folder / "runs" / "demo.zarr")
    accuracy = (store.root.prediction == store.root.label).mean("example").values
    assert accuracy[0] < 0.25
    assert accuracy[-1] > 0.7


def test_a_second_demo_does_nothing_again(demo):
    store = demo.folder / "runs" / "demo.zarr"
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    again = ndt(demo.folder, "demo")
    assert again.returncode == 0, again.stderr
    assert "was trained already" in again.stderr
    assert again.stdout == demo.stdout
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()} == before


class _Page(HTMLParser):
    """Collects what a page refers to and what it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts = 0
        self.figures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links, scripts and figures."""
        values = dict(attrs)
        self.links += [values[name] or "" for name in ("src", "href") if values.get(name)]
        self.scripts += tag == "script"
        self.figures += tag in ("img", "svg")


def test_the_report_is_one_page_that_needs_nothing_else(demo):
    folder = demo.folder / "runs" / "demo-report"
    assert sorted(path.name for path in folder.iterdir()) == ["cnn", "index.html"]  # figures for a paper, and numbers
    page = _Page()
    page.feed((folder / "index.html").read_text())
    assert page.figures >= 4
    assert page.scripts == 0
    assert not [link for link in page.links if not link.startswith(("data:", "#"))]


def _blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_python_session_of_the_readme_runs_and_prints_what_it_says(demo, monkeypatch, capsys):
    monkeypatch.chdir(demo.folder)
    for block in _blocks("python"):
        shown = [line.partition("# ")[2] for line in block.splitlines() if line.startswith("print(") and "# " in line]
        exec(compile(block, "README.md", "exec"), {})
        printed = capsys.readouterr().out.splitlines()
        assert [_shape(line) for line in printed] == [_shape(line) for line in shown]


PAGES = (
    "cams", "compare-runs", "composition", "geometry", "gradients", "heads", "similarity", "smooth-learning",
)  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_the_python_of_a_page_that_needs_no_more_than_the_demo_runs(demo, monkeypatch, capsys, name):
    page = README.parent / "docs" / "how-to" / f"{name}.md"
    monkeypatch.chdir(demo.folder)
    for block in _blocks("python", page):
        shown = [line.partition("# ")[2] for line in block.splitlines() if line.startswith("print(") and "# " in line]
        exec(compile(block, page.name, "exec"), {})
        printed = capsys.readouterr().out.splitlines()
        assert not shown or [_shape(line) for line in printed] == [_shape(line) for line in shown]


def test_the_commands_of_the_readme_run_and_print_what_it_says(demo):
    commands = 0
    for block in _blocks("console"):
        for part in block.split("$ ")[1:]:
            line, _, shown = part.partition("\n")
            words = shlex.split(line)
            if words[0] != "ndt":
                continue
            done = ndt(demo.folder, *words[1:])
            assert done.returncode == 0, (line, done.stderr)
            printed = [_shape(text) for text in done.stdout.splitlines() if text.strip()]
            for text in (_shape(text) for text in shown.splitlines() if text.strip() and text.strip() != "..."):
                assert text in printed, (line, text, printed)
            commands += 1
    assert commands >= 3


def _shape(line: str) -> str:
    """Drop what differs between machines: digits, signs, rules and the width of columns."""
    return re.sub(r"\s+", "", re.sub(r"-?[\d.,]+(e-?\d+)?|─+", "#", line))


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_of_the_readme_are_targets_of_the_makefile(target):
    assert f"make {target}" in README.read_text()
    assert re.search(rf"^{target}:", (README.parent / "Makefile").read_text(), re.MULTILINE)


def test_the_readme_names_every_command_and_which_of_them_have_formats():
    import click

    from ndt_store.cli import cli

    context = click.Context(cli)
    commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    text = README.read_text()
    assert not [name for name in commands if not re.search(rf"`(ndt )?{name}\b|ndt {name}\b|make {name}\b", text)]
    (sentence,) = re.findall(r"([^.\n]*) take `--format", text)
    with_format = {name for name, command in commands.items() if "--format" in str([p.opts for p in command.params])}
    assert set(re.findall(r"`([\w-]+)`", sentence)) == with_format
