"""`resnet recipes`: the recipes there are, and every value of one."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from shards.console import command, emit, table_lines

if TYPE_CHECKING:
    from training.recipes import Recipe

_WIDTH = 100  # columns


@command("recipes")
@click.argument("name", required=False)
def recipes(name: str | None, as_json: bool) -> None:
    """Show the recipes, or every value of the recipe NAME and where it is from.

    Batches are those of a process. Peak learning rates belong to the global batch beside them, and
    so do warm-up epochs; `resnet recipes NAME` says how they follow another one. The cost is in
    epochs of 224 x 224 pixels. What was published is what the sources report; none of it was
    trained again here.

    These values can be set otherwise, by options of `resnet train` or in a file of its option
    --config, by their names; base_lr, base_batch and lr_scaling are set as one, which is lr.
    """
    from training.recipes import RECIPES, find_recipe, recipe_values

    chosen = RECIPES.values() if name is None else [find_recipe(name)]
    data = [
        {
            **recipe_values(each),
            "source": each.source,
            "published": dict(each.published),
            "remarks": each.remarks,
            "notes": dict(each.notes),
            "eq224": each.eq224,
        }
        for each in chosen
    ]
    lines = _recipe_tables(chosen) if name is None else _recipe_lines(find_recipe(name))
    emit(as_json, {"recipes": data} if name is None else data[0], lines)


def _recipe_tables(chosen: Collection[Recipe]) -> list[str]:
    """What they cost and give, how they train, and whence they are; each part fits a terminal."""
    results = [
        (
            each.name,
            each.epochs,
            f"{each.eq224:.1f}",
            _train_sizes(each),
            each.eval_size,
            ", ".join(f"{model} {top1:g}" for model, top1 in each.published) or "none",
        )
        for each in chosen
    ]
    methods = [
        (
            each.name,
            each.batch_size,
            f"{each.base_lr:g} for {each.base_batch}",
            f"{each.warmup_per_256} per 256" if each.warmup_per_256 else str(each.warmup_epochs),
            each.schedule,
            each.optimizer,
            f"{each.loss}, {each.label_smoothing:g}" if each.label_smoothing else each.loss,
        )
        for each in chosen
    ]
    return [
        *table_lines(("recipe", "epochs", "cost", "train", "eval", "published top-1, %"), results),
        "",
        *table_lines(
            ("recipe", "batch", "peak lr", "warm-up", "schedule", "optimizer", "loss, smoothing"),
            methods,
        ),
        "",
        *(line for each in chosen for line in _source_lines(each)),
    ]


def _source_lines(recipe: Recipe) -> list[str]:
    return textwrap.wrap(
        f"{recipe.name}: {recipe.source}. Published figures: {recipe.remarks}.",
        width=_WIDTH,
        subsequent_indent="  ",
        break_long_words=False,  # paths
        break_on_hyphens=False,
    )


def _train_sizes(recipe: Recipe) -> str:
    first = recipe.size_at(0, recipe.epochs)
    return f"{first}-{recipe.image_size}" if recipe.start_size else str(recipe.image_size)


def _recipe_lines(recipe: Recipe) -> list[str]:
    from training.recipes import recipe_values

    notes = dict(recipe.notes)
    published = ", ".join(f"{model} {top1:g} %" for model, top1 in recipe.published)
    rows = [
        (name, json.dumps(value), notes.get(name, ""))  # as in a file of --config
        for name, value in recipe_values(recipe).items()
        if name != "name"
    ]
    return [
        f"{recipe.name}: {recipe.source}",
        f"published  {published or 'nothing'}: {recipe.remarks}",
        f"cost       {recipe.eq224:.1f} epochs of 224 x 224 pixels",
        "",
        *table_lines(("value", "is", "not of that source, or to know"), rows),
    ]
