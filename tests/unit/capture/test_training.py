"""Training: the same bits every time, through kills and restarts, and nothing left behind in torch."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from capture import training
from capture._training_state import TrainingState
from capture.checkpoints import checkpoint_path, list_checkpoints, load_weights, save_weights, weights_digest
from capture.data import ImageData, load_digits
from capture.models import build_model
from capture.recipe import Recipe, TrainingRecipe, parse_recipe
from capture.training import (
    TrainingResult,
    batch_positions,
    evaluate,
    load_training_log,
    train,
    train_recipe,
)
from ndt_store.errors import (
    AlreadyExistsError,
    CaptureError,
    IntegrityError,
    InvalidInputError,
    ResumeMismatchError,
    StoreLockedError,
)

STEPS = 12
SETTINGS = TrainingRecipe(steps=STEPS, batch_size=64, checkpoints=[0, 5, 9, 12])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_digits("train").first(300)


def model(seed: int = 0, dropout: float = 0.2) -> nn.Module:
    """A model whose training also depends on torch's random state and on buffers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(144, 10)
        )


class KilledError(Exception):
    pass


def kill_at(step: int) -> Any:
    def progress(now: int, _n_steps: int, _loss: float, _accuracy: float) -> None:
        if now == step:
            raise KilledError

    return progress


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def small_recipe(**changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "small",
        "model": {"name": "cnn", "options": {"channels": [4]}},
        "data": {"name": "digits"},
        "training": {"steps": 6, "batch_size": 64, "checkpoints": [0, 3, 6]},
        "capture": {"layers": ["relu1"]},
    }
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    return parse_recipe(content)


def test_train__equals_a_plain_torch_loop(data: ImageData) -> None:
    trained = build_model("mlp_narrow", input_shape=(1, 8, 8), n_classes=10, seed=0)
    train(SETTINGS, trained, data, seed=3)

    reference = build_model("mlp_narrow", input_shape=(1, 8, 8), n_classes=10, seed=0)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3)
    order = np.concatenate([np.random.default_rng([3, epoch]).permutation(300)[:256] for epoch in range(3)])
    for batch in order.reshape(-1, 64):
        optimizer.zero_grad()
        logits = reference(torch.from_numpy(data.inputs[batch]))
        (-torch.log_softmax(logits, 1)[torch.arange(64), torch.from_numpy(data.labels[batch])]).mean().backward()
        optimizer.step()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_train__sgd_follows_the_momentum_formula(data: ImageData) -> None:
    settings = TrainingRecipe(
        steps=3, batch_size=300, optimizer="sgd", learning_rate=0.1, momentum=0.5, weight_decay=0.01
    )
    trained = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    w = torch.cat([trained[1].weight, trained[1].bias[:, None]], 1).detach().double().numpy()
    train(settings, trained, data)
    x = np.concatenate([data.inputs.reshape(300, 64).astype(float), np.ones((300, 1))], 1)
    velocity = np.zeros_like(w)
    for _ in range(3):
        p = np.exp(x @ w.T)
        p /= p.sum(1, keepdims=True)
        p[np.arange(300), data.labels] -= 1
        velocity = 0.5 * velocity + p.T @ x / 300 + 0.01 * w
        w = w - 0.1 * velocity
    np.testing.assert_allclose(trained[1].weight.detach(), w[:, :-1], atol=1e-5)
    np.testing.assert_allclose(trained[1].bias.detach(), w[:, -1], atol=1e-5)


def test_train__twice_gives_the_same_files_bit_for_bit(data: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = train(SETTINGS, model(), data, save=tmp_path / "a")
    torch.manual_seed(2)
    second = train(SETTINGS, model(), data, save=tmp_path / "b")
    assert first.weights_digest == second.weights_digest
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert train(SETTINGS, model(), data, seed=1).weights_digest != first.weights_digest
    assert train(SETTINGS, model(seed=1), data).weights_digest != first.weights_digest


def test_train__gives_the_same_weights_in_two_processes(tmp_path: Path) -> None:
    code = """
    import sys, torch
    torch.set_num_threads(1)
    torch.manual_seed(int(sys.argv[1]))
    from capture.recipe import load_recipe
    from capture.training import train_recipe
    print(train_recipe(load_recipe(sys.argv[2]), sys.argv[3]).weights_digest)
    """
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'name = "small"\n[model]\nname = "transformer"\noptions = { d_model = 16, dropout = 0.1 }\n'
        '[data]\nname = "digits"\n[training]\nsteps = 4\nbatch_size = 32\n[capture]\nlayers = ["embed"]\n'
    )
    digests = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(run), str(recipe), tmp_path / str(run)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for run in (1, 2)
    }
    assert len(digests) == 1


def test_train__saves_the_scheduled_weights(data: ImageData, tmp_path: Path) -> None:
    trained = model()
    initial = weights_digest(trained.state_dict())
    result = train(SETTINGS, trained, data, save=tmp_path)
    assert [step for step, _ in result.checkpoints] == [0, 5, 9, 12]
    assert list(result.checkpoints) == list_checkpoints(tmp_path)
    assert weights_digest(load_weights(result.checkpoints[0][1])) == initial
    assert weights_digest(load_weights(result.checkpoints[-1][1])) == result.weights_digest
    assert weights_digest(trained.state_dict()) == result.weights_digest
    part = model()
    train(TrainingRecipe(steps=5, batch_size=64), part, data)
    assert weights_digest(load_weights(result.checkpoints[1][1])) == weights_digest(part.state_dict())


def test_train__schedule_argument_replaces_the_settings_own(data: ImageData, tmp_path: Path) -> None:
    result = train(SETTINGS, model(), data, save=tmp_path, schedule={"every": 6})
    assert [step for step, _ in result.checkpoints] == [0, 6, 12]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("killed_at", [1, 5, 6, 11])
def test_train__killed_and_resumed_gives_the_same_files(
    data: ImageData, tmp_path: Path, killed_at: int, optimizer: str
) -> None:
    momentum = 0.9 if optimizer == "sgd" else 0.0
    settings = TrainingRecipe(steps=STEPS, batch_size=64, checkpoints=[0, 5, 9], optimizer=optimizer, momentum=momentum)
    train(settings, model(), data, save=tmp_path / "through")
    with pytest.raises(KilledError):
        train(settings, model(), data, save=tmp_path / "killed", progress=kill_at(killed_at))
    torch.manual_seed(killed_at)
    result = train(settings, model(), data, save=tmp_path / "killed")
    assert result.n_trained == STEPS - (0 if killed_at < 6 else 5 if killed_at < 10 else 9)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "through")


@pytest.mark.parametrize("killed_at", [0, 5])
def test_train__killed_between_a_checkpoint_and_its_state_resumes(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    save_checkpoint = TrainingState.save_checkpoint

    def save_and_die(self: TrainingState, folder: Path) -> None:
        save_checkpoint(self, folder)
        if self.step == killed_at:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save_checkpoint", save_and_die)
        with pytest.raises(KilledError):
            train(SETTINGS, model(), data, save=tmp_path / "killed")
    assert list_checkpoints(tmp_path / "killed")[-1][0] == killed_at
    train(SETTINGS, model(), data, save=tmp_path / "killed")
    train(SETTINGS, model(), data, save=tmp_path / "through")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "through")


def test_train__saves_its_state_between_checkpoints(data: ImageData, tmp_path: Path) -> None:
    settings = TrainingRecipe(steps=STEPS, batch_size=64, checkpoints=[12])
    with pytest.raises(KilledError):
        train(settings, model(), data, save=tmp_path, progress=kill_at(8), state_interval_s=0.0)
    assert train(settings, model(), data, save=tmp_path).n_trained == STEPS - 7


def test_train__survives_a_real_kill(data: ImageData, tmp_path: Path) -> None:
    code = """
    import os, signal, sys, torch
    torch.set_num_threads(1)
    from capture.recipe import parse_recipe
    from capture.training import train_recipe
    from tests_recipe import RECIPE
    def progress(step, *rest):
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    train_recipe(parse_recipe(RECIPE), sys.argv[1], progress=progress)
    """
    recipe = small_recipe()
    (tmp_path / "tests_recipe.py").write_text(f"RECIPE = {recipe.model_dump(mode='json')!r}\n")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "killed")],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert [step for step, _ in list_checkpoints(tmp_path / "killed")] == [0, 3]
    train_recipe(recipe, tmp_path / "killed")
    train_recipe(recipe, tmp_path / "through")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "through")


def test_train__a_finished_training_is_not_repeated(data: ImageData, tmp_path: Path) -> None:
    first = train(SETTINGS, model(), data, save=tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.suffix}
    fresh = model()
    again = train(SETTINGS, fresh, data, save=tmp_path, progress=kill_at(1))
    assert again.n_trained == 0
    assert again.checkpoints == first.checkpoints
    assert again.log.rows == first.log.rows
    assert weights_digest(fresh.state_dict()) == first.weights_digest == again.weights_digest
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.suffix} == before


@pytest.mark.parametrize("damage", ["missing", "truncated", "other weights"])
def test_train__mends_a_checkpoint_that_is_gone_or_damaged(data: ImageData, tmp_path: Path, damage: str) -> None:
    train(SETTINGS, model(), data, save=tmp_path)
    before = files_of(tmp_path)
    path = checkpoint_path(tmp_path, 5)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        save_weights(path, model(seed=9).state_dict())
    assert train(SETTINGS, model(), data, save=tmp_path).n_trained == STEPS
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "field", "old", "new"),
    [
        ({"training": {"learning_rate": 0.002}}, "training.learning_rate", "0.001", "0.002"),
        ({"training": {"steps": 7}}, "training.steps", "6", "7"),
        ({"training": {"checkpoints": [0, 6]}}, "training.checkpoints", "[0, 3, 6]", "[0, 6]"),
        ({"model": {"options": {"channels": [5]}}}, "model.options", '{"channels": [4]}', '{"channels": [5]}'),
        ({"data": {"mean": 0.5}}, "data.mean", "[0.0]", "[0.5]"),
        ({"seed": 1}, "seed", "0", "1"),
    ],
)
def test_train_recipe__refuses_to_go_on_with_a_changed_recipe(
    tmp_path: Path, change: dict[str, Any], field: str, old: str, new: str
) -> None:
    with pytest.raises(KilledError):
        train_recipe(small_recipe(), tmp_path, progress=kill_at(4))
    before = files_of(tmp_path)
    with pytest.raises(ResumeMismatchError) as caught:
        train_recipe(small_recipe(**change), tmp_path)
    assert caught.value.field == field
    assert f"{field} = {old}, and this one has {new}" in str(caught.value)
    assert files_of(tmp_path) == before


def test_train_recipe__may_change_what_is_captured(tmp_path: Path) -> None:
    train_recipe(small_recipe(), tmp_path)
    assert train_recipe(small_recipe(name="other", capture={"layers": ["conv1"]}), tmp_path).n_trained == 0


def test_train__refuses_other_data_and_other_initial_weights(data: ImageData, tmp_path: Path) -> None:
    train(SETTINGS, model(), data, save=tmp_path)
    with pytest.raises(ResumeMismatchError, match="data_digest"):
        train(SETTINGS, model(), data.select(np.arange(300)[::-1]), save=tmp_path)
    with pytest.raises(ResumeMismatchError, match="initial_weights_digest"):
        train(SETTINGS, model(seed=1), data, save=tmp_path)


def test_train__refuses_a_folder_of_foreign_checkpoints(data: ImageData, tmp_path: Path) -> None:
    save_weights(checkpoint_path(tmp_path, 5), {"w": torch.zeros(2)})
    before = checkpoint_path(tmp_path, 5).read_bytes()
    with pytest.raises(AlreadyExistsError, match="choose another folder"):
        train(SETTINGS, model(), data, save=tmp_path)
    assert checkpoint_path(tmp_path, 5).read_bytes() == before


@pytest.mark.parametrize("keep", [0, 20, 5000])
def test_train__says_which_state_file_is_damaged(data: ImageData, tmp_path: Path, keep: int) -> None:
    train(SETTINGS, model(), data, save=tmp_path)
    path = tmp_path / "training-state.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match=r"training-state\.safetensors"):
        train(SETTINGS, model(), data, save=tmp_path)


def test_train__one_process_at_a_time_and_temporaries_are_swept(data: ImageData, tmp_path: Path) -> None:
    stale = tmp_path / ".step-000005.safetensors.1.tmp"
    stale.touch()

    def second(*_: object) -> None:
        assert not stale.exists()
        with pytest.raises(StoreLockedError, match=str(tmp_path)):
            train(SETTINGS, model(), data, save=tmp_path)
        raise KilledError

    with pytest.raises(KilledError):
        train(SETTINGS, model(), data, save=tmp_path, progress=second)
    assert train(SETTINGS, model(), data, save=tmp_path).n_trained == STEPS


def test_train__reports_and_logs_every_update(data: ImageData, tmp_path: Path) -> None:
    seen: list[tuple[int, int, float, float]] = []
    reference = model(dropout=0.0)
    batch = batch_positions(0, 0, 300, 64)
    reference.train()
    logits = reference(torch.from_numpy(data.inputs[batch])).detach().numpy().astype(float)
    truth = data.labels[batch]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    result = train(SETTINGS, model(dropout=0.0), data, save=tmp_path, progress=lambda *row: seen.append(row))
    assert [(step, n) for step, n, *_ in seen] == [(step, STEPS) for step in range(1, STEPS + 1)]
    assert seen[0][2] == pytest.approx(-np.log(p[np.arange(64), truth]).mean(), rel=1e-5)
    assert seen[0][3] == pytest.approx((logits.argmax(1) == truth).mean(), rel=1e-6)
    with (tmp_path / "training-log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["step"]), STEPS, float(r["loss"]), float(r["accuracy"])) for r in rows] == seen
    log = load_training_log(tmp_path)
    assert log.rows == result.log.rows
    assert (log.step.dtype, log.loss.dtype, log.accuracy.shape) == (np.int64, np.float64, (STEPS,))


def test_train__log_every_thins_the_log_and_keeps_the_last_step(data: ImageData) -> None:
    settings = TrainingRecipe(steps=STEPS, batch_size=64, log_every=5)
    log = train(settings, model(), data).log
    assert log.step.tolist() == [5, 10, 12]


def test_load_training_log__refuses_a_damaged_file(tmp_path: Path) -> None:
    for content in ("", "a,b\n1,2\n", "step,loss,accuracy\n1,x,0.5\n", "step,loss,accuracy\n1,0.5\n"):
        (tmp_path / "training-log.csv").write_text(content)
        with pytest.raises(IntegrityError, match=r"training-log\.csv is not a training log"):
            load_training_log(tmp_path)


def test_train__stops_at_a_loss_that_is_not_finite(data: ImageData, tmp_path: Path) -> None:
    settings = TrainingRecipe(steps=50, batch_size=64, optimizer="sgd", learning_rate=1e30)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    with pytest.raises(CaptureError, match=r"The loss is (nan|inf) at step \d+ of 50.*learning_rate"):
        train(settings, net, data, save=tmp_path)


def test_train__refuses_batches_larger_than_the_data(data: ImageData) -> None:
    with pytest.raises(InvalidInputError, match="batch_size is 301, expected at most the 300"):
        train(TrainingRecipe(steps=1, batch_size=301), model(), data)
    with pytest.raises(InvalidInputError, match="no device"):
        train(SETTINGS, nn.Flatten(), data)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_train__puts_torchs_global_state_back(
    data: ImageData, fails: bool, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if enabled:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    else:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.manual_seed(5)
    trained = model()
    trained[1].eval()
    before = torch.get_rng_state()
    torch.use_deterministic_algorithms(enabled, warn_only=enabled)
    torch.backends.cudnn.benchmark = enabled
    inside: list[bool] = []

    def progress(step: int, *_: object) -> None:
        inside.append(
            torch.are_deterministic_algorithms_enabled()
            and not torch.is_deterministic_algorithms_warn_only_enabled()
            and not torch.backends.cudnn.benchmark
            and not torch.utils.deterministic.fill_uninitialized_memory
            and trained[1].training
        )
        if fails and step == 3:
            raise KilledError

    try:
        if fails:
            with pytest.raises(KilledError):
                train(SETTINGS, trained, data, progress=progress)
        else:
            train(SETTINGS, trained, data, progress=progress)
        assert torch.are_deterministic_algorithms_enabled() is enabled
        assert torch.is_deterministic_algorithms_warn_only_enabled() is enabled
        assert torch.backends.cudnn.benchmark is enabled
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
    assert inside
    assert all(inside)
    assert torch.equal(torch.get_rng_state(), before)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":16:8" if enabled else None)
    assert (trained.training, trained[1].training, trained[4].training) == (True, False, True)


def test_train__does_not_depend_on_memory_that_nothing_wrote(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    unfilled = train(SETTINGS, model(), data)
    # With the switch stuck, each new tensor is NaN until it is written.
    monkeypatch.setattr(torch._C, "_set_deterministic_fill_uninitialized_memory", lambda _: None)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert train(SETTINGS, model(), data).weights_digest == unfilled.weights_digest


def test_batch_positions__each_epoch_is_a_permutation_of_its_own() -> None:
    epochs = [np.concatenate([batch_positions(0, 3 * e + i, 10, 3) for i in range(3)]) for e in range(3)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 9
        assert set(epoch.tolist()) <= set(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert not np.array_equal(batch_positions(0, 0, 10, 3), batch_positions(1, 0, 10, 3))


def test_evaluate__equals_the_whole_batch_and_leaves_the_mode(data: ImageData) -> None:
    net = model()
    loss, accuracy = evaluate(net, data, batch_size=70)
    assert net.training
    net.eval()
    logits = net(torch.from_numpy(data.inputs)).detach()
    truth = torch.from_numpy(data.labels)
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, truth).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == truth).double().mean().item())


def test_train__learns(data: ImageData) -> None:
    net = build_model("cnn", input_shape=(1, 8, 8), n_classes=10, channels=[8, 16], seed=0)
    result = train(TrainingRecipe(steps=120, batch_size=64, learning_rate=5e-3), net, load_digits("train"))
    assert isinstance(result, TrainingResult)
    assert evaluate(net, load_digits("test"))[1] > 0.85


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_train__on_a_gpu_is_deterministic_and_resumes(data: ImageData, tmp_path: Path) -> None:
    def run(name: str, progress: Any = None) -> TrainingResult:
        net = model().cuda()
        return train(SETTINGS, net, data, save=tmp_path / name, progress=progress)

    through = run("through")
    with pytest.raises(KilledError):
        run("killed", kill_at(7))
    torch.cuda.manual_seed(9)
    assert run("killed").n_trained == STEPS - 5
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "through")
    assert through.weights_digest == run("again").weights_digest
    assert training.train_recipe(small_recipe(), tmp_path / "recipe", device="cuda").n_trained == 6
