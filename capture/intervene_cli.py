"""The command `ndt intervene`: trains with interventions at jumps and controls; what came of it goes to the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import rich_click as click

from capture.cli import data_dir_option, device_option, load, recipe_argument, store_option
from ndt_store.cliparts import format_option, in_turn, tell
from ndt_store.errors import AlreadyExistsError, InvalidInputError
from ndt_store.progress import progress_bar
from ndt_store.reader import Store, open_store
from ndt_store.resume import check_fields

if TYPE_CHECKING:
    import xarray as xr

    from capture.intervention_plan import InterventionPlan
    from capture.moments import Moment
    from capture.recipe import Recipe

__all__ = ["intervene"]

EXPERIMENT: Final = "interventions"


def _seeds(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of whole numbers such as 0,1,2.") from None


@click.command()
@recipe_argument
@store_option
@click.option(
    "--seeds",
    default="0,1,2",
    show_default=True,
    callback=_seeds,
    help="Seeds of the recipe, each a training of its own.",
)
@click.option(
    "--moments",
    "moments_file",
    type=click.Path(dir_okay=False),
    help="CSV file with the columns step and role (jump or control), and maybe seed and jump.",
)
@click.option("--jump", "jumps", type=int, multiple=True, help="Interfere from this update on, at a jump; repeatable.")
@click.option("--control", "controls", type=int, multiple=True, help="The same, at a control; repeatable.")
@click.option("--steps", "n_steps", type=int, default=20, show_default=True, help="Updates an intervention lasts.")
@click.option(
    "--noise", type=float, default=1.0, show_default=True, help="Of perturbed gradients, in units of their own size."
)
@click.option("--every", type=int, help="Steps between measurements; default those of the recipe's [tracking].")
@click.option(
    "--arms", type=click.Path(file_okay=False), help="Folder of finished arms; default runs/NAME-interventions."
)
@click.option("--replace", is_flag=True, help="Replace other results that the store holds.")
@data_dir_option
@device_option
@format_option
@click.pass_context
def intervene(
    context: click.Context,
    recipe: str,
    store: str | None,
    seeds: tuple[int, ...],
    moments_file: str | None,
    jumps: tuple[int, ...],
    controls: tuple[int, ...],
    n_steps: int,
    noise: float,
    every: int | None,
    arms: str | None,
    replace: bool,
    data_dir: str | None,
    device: str,
    output_format: str,
) -> None:
    """Train RECIPE undisturbed, and frozen or perturbed for some updates at jumps and controls. Run it again to resume.

    Without --moments, --jump and --control these are the jumps and matched controls that are found in training/ of the
    store, and for another seed in that of its own store, which `ndt train RECIPE --seed N` makes. What came of it goes
    to experiments/interventions of the store; a table of the effects, as of `ndt effects`, is printed.
    """
    from capture.intervention_plan import plan_interventions
    from capture.interventions import run_plan
    from capture.moments import ROLES
    from capture.tracked_moments import tracked_moments
    from ndt_store.experiments import write_experiment

    loaded, _, path = load(recipe, None, None, store)
    opened = open_store(path)
    _require_recipe(opened, loaded)
    if moments_file is not None or jumps or controls:
        moments = _given(moments_file, jumps, controls, seeds)
    else:
        with progress_bar("finding jumps") as advance:
            moments = tracked_moments(loaded, path, seeds, n_steps, tell, advance)
    plan = plan_interventions(loaded, moments=moments, seeds=seeds, n_steps=n_steps, noise=noise, every=every)
    if not replace:
        _require_room(opened, plan)
    for seed, some in plan.moments.items():
        by_role = {role: ", ".join(str(one.step) for one in some if one.role == role) or "none" for role in ROLES}
        tell(f"seed {seed}: jumps at {by_role['jump']}; controls at {by_role['control']}.")
    tell(
        f"{plan.n_arms} arms: {len(seeds)} seeds undisturbed, and {sum(map(len, moments.values()))} moments frozen and "
        f"perturbed for {n_steps} updates; {plan.n_updates} updates in all."
    )
    folder = Path(arms or f"runs/{loaded.name}-interventions")
    with progress_bar("intervening") as advance:
        dataset = run_plan(plan, folder, data_dir=data_dir, device=device, progress=advance)
    write_experiment(path, EXPERIMENT, dataset, replace=replace)
    tell(f"{path}: experiments/{EXPERIMENT} holds {plan.n_arms} arms.")
    in_turn(context, [("effects", str(path), "--format", output_format)])


def _given(
    file: str | None, jumps: tuple[int, ...], controls: tuple[int, ...], seeds: tuple[int, ...]
) -> dict[int, tuple[Moment, ...]]:
    from capture.moments import Moment, read_moments

    if file is not None and (jumps or controls):
        raise InvalidInputError("--moments was given with --jump or --control: give the one or the others.")
    if file is not None:
        return read_moments(file, seeds)
    moments = (*(Moment(step, "jump") for step in jumps), *(Moment(step, "control") for step in controls))
    return dict.fromkeys(seeds, moments)


def _require_recipe(store: Store, recipe: Recipe) -> None:
    """Check that a store comes from this recipe, where it says from which it comes."""
    from capture.tracked_moments import deciding

    held = store.provenance.get("identity", {}).get("recipe")
    if held is None:
        return
    check_fields(store.path, deciding(held), deciding(recipe.model_dump(mode="json")), "recipe")


def _require_room(store: Store, plan: InterventionPlan) -> None:
    """Check before anything is trained that the store holds no other results."""
    if EXPERIMENT not in store.experiments:
        return
    held = store.experiment(EXPERIMENT)
    planned = {seed: tuple((moment.step, moment.role) for moment in some) for seed, some in plan.moments.items()}
    if _moments_of(held) != planned or any(held.attrs.get(name) != value for name, value in plan.settings.items()):
        raise AlreadyExistsError(
            f"{store.path} holds interventions with other settings, seeds or moments already: give --replace to put "
            "these in their place, with another folder of --arms where settings changed; or another store."
        )


def _moments_of(held: xr.Dataset) -> dict[int, tuple[tuple[int, str], ...]] | None:
    """Return the moments of each seed; None where the results are not of interventions."""
    if not {"seed", "moment_step", "role"} <= set(held.variables):
        return None
    columns = (held[name].values for name in ("seed", "moment_step", "role"))
    return {
        int(seed): tuple((int(step), str(role)) for step, role in zip(steps, roles, strict=True) if step >= 0)
        for seed, steps, roles in zip(*columns, strict=True)
    }
