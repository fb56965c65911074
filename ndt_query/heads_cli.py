"""The command `ndt heads`: what each head is worth, what can be read off it, and what kind it is."""

from __future__ import annotations

from typing import Any

import rich_click as click

from ndt_store.cliparts import emit, format_option, require_picture, store_argument, tell, with_reach
from ndt_store.dims import ATTENTIONS, CHECKPOINT, HEAD, LAYER, MEAN_PATTERN
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.reader import Store, open_store

__all__ = ["heads"]


@click.command()
@store_argument
@click.option("--checkpoint", type=int, help="Training step; the last by default.")
@click.option(
    "--method", type=click.Choice(("zero", "mean")), default="zero", show_default=True, help="Of the ablation."
)
@click.option("--figure", type=click.Path(dir_okay=False), help="Draw importance too: a .png, .svg or .pdf file.")
@format_option
def heads(store: str, checkpoint: int | None, method: str, figure: str | None, output_format: str) -> None:
    """Say of each head what the model loses without it, what a probe reads off it, and its category by a stated rule.

    Losses need the experiment that `ndt ablate-heads` makes, probes layers that were captured as NAME@heads; what is
    not there is left out. low and high are 95% intervals over examples, q is over all heads.
    """
    from ndt_query.importance import EXPERIMENT
    from ndt_query.probing import HEADS

    if figure is not None:
        require_picture(figure)
    opened = open_store(store)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    if EXPERIMENT in opened.experiments:
        _importance(opened, checkpoint, method, figure, rows)
    elif figure is not None:
        raise NotFoundError(f"{store} has no experiment {EXPERIMENT}, which the figure is of: run `ndt ablate-heads`.")
    if any(name.endswith(HEADS) for name in opened.layers):
        _probes(opened, checkpoint, rows)
    if not rows:
        raise NotFoundError(
            f"{store} has neither the experiment {EXPERIMENT} nor layers {HEADS}: run `ndt ablate-heads RECIPE`, or "
            "capture layers such as 'encoder.layers.*.self_attn@heads'."
        )
    table = [with_reach(row, ["accuracy_drop"]) if output_format == "table" else row for row in rows.values()]
    columns = list(dict.fromkeys(name for row in table for name in row))
    emit([{name: row.get(name) for name in columns} for row in table], output_format, columns=columns)


def _importance(
    store: Store, checkpoint: int | None, method: str, figure: str | None, rows: dict[tuple[str, int], dict[str, Any]]
) -> None:
    from ndt_query.importance import head_importance

    found = head_importance(store)
    held, methods = found["step"].values, [str(one) for one in found["ablation"].values]
    step = int(held[-1]) if checkpoint is None else checkpoint
    if step not in held or method not in methods:
        raise NotFoundError(
            f"{store.path} has heads ablated at steps {', '.join(map(str, held))} by {', '.join(methods)}: got {step} "
            f"and {method}."
        )
    now = found.sel(step=step, ablation=method)
    for layer in now[LAYER].values:
        for head in now[HEAD].values:
            one = now.sel({LAYER: layer, HEAD: head})
            if bool(one["accuracy_drop"].isnull()):
                continue
            names = ("accuracy_drop", "accuracy_drop_low", "accuracy_drop_high", "q_value", "margin_drop")
            rows[str(layer), int(head)] = {
                "layer": str(layer), "checkpoint": step, "head": int(head),
                **{name: float(one[name]) for name in (*names, "gradient_importance")},
            }  # fmt: skip
    tell(
        f"Gradient importance and margins lost: rank correlation {float(now['rank_correlation']):.2f}, p "
        f"{float(now['rank_p_value']):.2g}; the whole model has {float(now['whole_accuracy']):.1%} right."
    )
    if figure is not None:
        from ndt_query.plot import head_importance as draw
        from ndt_query.plot import save

        tell(f"{save(draw(found, method=method, step=step), figure)}: figure.")


def _attends(layer: Any) -> bool:
    return ATTENTIONS in layer or MEAN_PATTERN in layer


def _probes(store: Store, checkpoint: int | None, rows: dict[tuple[str, int], dict[str, Any]]) -> None:
    from ndt_query.attention import attention_entropy
    from ndt_query.inputs import require_steps
    from ndt_query.probing import HEADS, head_categories, probe_heads

    names = [name for name in store.layers if name.endswith(HEADS)]
    step = int(store.checkpoints[-1]) if checkpoint is None else checkpoint
    require_steps(store[names[0]].activations, [step])
    at = {name.removesuffix(HEADS): store[name].activations.sel({CHECKPOINT: [step]}) for name in names}
    try:
        found = probe_heads(at)
    except (InvalidInputError, NotFoundError) as error:
        tell(f"Probes are left out. {error}")
        return
    with_attention = {name: store[name].sel({CHECKPOINT: [step]}) for name in at if name in store.layers}
    if all(_attends(one) for one in with_attention.values()) and with_attention:
        found["entropy"] = attention_entropy(with_attention)["entropy"].compute()
    else:
        tell("No head is called uniform: the store holds no attention of all of them.")
    found["category"] = head_categories(found)["category"]
    for layer in found[LAYER].values:
        for place in range(found.sizes[HEAD]):
            one = found.sel({LAYER: layer}).isel({HEAD: place, CHECKPOINT: 0})
            if str(one["category"].item()) == "":
                continue
            row = rows.setdefault(
                (str(layer), int(one[HEAD]) if HEAD in one.coords else place),
                {"layer": str(layer), "checkpoint": step, "head": int(one[HEAD]) if HEAD in one.coords else place},
            )
            for name in ("class_accuracy", "class_control", "position_accuracy", "position_control"):
                row[name] = float(one[name])
            row["category"] = str(one["category"].item())
