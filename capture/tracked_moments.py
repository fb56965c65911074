"""Moments of a study, from the jumps and controls in what each seed's training tracked.

A jump is compared with the control that is matched with it. What cannot be compared is left out, and said:

- a jump so late that no update would follow the intervention, with its control;
- a control so late, or one whose intervention would run through a jump. Its jump stays, without a control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from capture.moments import Moment, scheduled_moments
from capture.recipe import Recipe
from capture.schedules import load_schedule
from ndt_store.dims import TRAINING_GROUP
from ndt_store.errors import NotFoundError
from ndt_store.reader import open_training
from ndt_store.resume import check_fields
from ndt_store.storage import open_storage
from ndt_store.supplements import read_record

__all__ = ["deciding", "tracked_moments"]

Say = Callable[[str], None]
Found = dict[int, tuple[Moment, ...]]


def deciding(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides a training, of a recipe as JSON."""
    training = {key: value for key, value in content["training"].items() if key not in ("checkpoints", "log_every")}
    return {**{name: content[name] for name in ("seed", "model", "data")}, "training": training}


def tracked_moments(
    recipe: Recipe, path: Path, seeds: Sequence[int], n_steps: int, say: Say, progress: Callable[[int, int], None]
) -> Found:
    """Return the jumps and controls of each seed.

    Parameters
    ----------
    recipe : Recipe
    path : Path
        Store of the recipe's own seed; that of another seed N lies beside it, with ``-seedN`` in its name.
    seeds : sequence of int
    n_steps : int
        Updates that an intervention lasts.
    say : callable of str
        Is told of everything that is left out.
    progress : callable of (seeds done, seeds in all)

    Raises
    ------
    NotFoundError
        A seed has no tracked training, or there is no moment to interfere at.
    ResumeMismatchError
        A training was tracked with another recipe; names the first field that differs, with both values.
    """
    found: Found = {}
    n_jumps = 0
    for n, seed in enumerate(seeds, 1):
        own = path if seed == recipe.seed else path.with_name(f"{path.stem}-seed{seed}{path.suffix}")
        moments, every = _of_training(recipe.with_seed(seed), own)
        n_jumps += sum(moment.role == "jump" for moment in moments)
        if n_steps <= every and moments:
            say(f"An intervention of {n_steps} updates may miss a jump: trainings are measured each {every} steps.")
        found[seed] = _comparable(moments, recipe.training.steps - n_steps, n_steps, every, f"seed {seed}", say)
        if not found[seed]:
            say(f"seed {seed}: no moment, so that it is trained undisturbed only.")
        progress(n, len(seeds))
    if not any(found.values()):
        what = f"{n_jumps} jumps are found, all too late for {n_steps} steps: give fewer with --steps"
        none = "No jump is found: there is nothing to interfere at"
        raise NotFoundError(
            f"{what if n_jumps else none} (tracked trainings of seed {', '.join(map(str, seeds))}); or name moments "
            "with --jump and --control to do so all the same."
        )
    return found


def _of_training(recipe: Recipe, store: Path) -> tuple[tuple[Moment, ...], int]:
    """Return the moments of one tracked training, and the steps between its measurements."""
    advice = (
        f"run `ndt train {recipe.name} --seed {recipe.seed}` with that store first, or name moments with --jump and "
        "--control"
    )
    try:
        training = open_training(store)
    except NotFoundError as error:
        raise NotFoundError(f"{store} holds no tracked training of seed {recipe.seed}: {advice}.") from error
    record = read_record(open_storage(store), TRAINING_GROUP)
    wanted = {
        name if table is None else f"{table}.{name}": value
        for table, values in _tables(recipe)
        for name, value in values.items()
    }
    held = {} if record is None else dict(record.identity)
    if "seed" not in held:
        raise NotFoundError(f"{store} does not say by which recipe its training was tracked: {advice}.")
    check_fields(str(store), {name: held.get(name) for name in wanted}, wanted, "recipe")
    steps = training["step"].values
    return scheduled_moments(load_schedule("jumps")(training, seed=recipe.seed), steps), int(steps[1] - steps[0])


def _tables(recipe: Recipe) -> list[tuple[str | None, dict[str, Any]]]:
    said = deciding(recipe.model_dump(mode="json"))
    return [(None, {"seed": said.pop("seed")}), *said.items()]


def _comparable(
    moments: Sequence[Moment], last: int, n_steps: int, every: int, whose: str, say: Say
) -> tuple[Moment, ...]:
    jumps = [moment for moment in moments if moment.role == "jump"]
    late = {moment.jump for moment in jumps if moment.step > last}
    kept = [moment for moment in jumps if moment.jump not in late]
    if late:
        where = ", ".join(str(moment.step) for moment in jumps if moment.jump in late)
        say(f"{whose}: left out what would end after the training: jumps at {where}, with their controls.")
    for control in (moment for moment in moments if moment.role == "control" and moment.jump not in late):
        ends = control.step + n_steps
        hit = [jump.step for jump in jumps if control.step < jump.step + every and jump.step < ends]
        if control.step > last:
            say(f"{whose}: left out the control at {control.step}, which would end after the training.")
        elif hit:
            say(f"{whose}: left out the control at {control.step}, which would run through the jump at {hit[0]}.")
        else:
            kept.append(control)
    return tuple(sorted(kept))
