"""`resnet recipes`: the recipes there are, and every value of one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from shards.console import command, emit, table_lines

if TYPE_CHECKING:
    from training.recipes import Recipe


@command("recipes")
@click.argument("name", required=False)
def recipes(name: str | None, as_json: bool) -> None:
    """Show the recipes, or every value of the recipe NAME and where it is from.

    Any of these values can be set otherwise: by options of `resnet train`, or in a file of its
    option --config. The cost is in epochs of 224 x 224 pixels. What was published is what the
    sources report; none of it was trained again here.
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
    lines = _recipe_table(chosen) if name is None else _recipe_lines(find_recipe(name))
    emit(as_json, {"recipes": data} if name is None else data[0], lines)


def _recipe_table(chosen: Iterable[Recipe]) -> list[str]:
    rows = [
        (
            each.name,
            ", ".join(f"{model} {top1:g}" for model, top1 in each.published) or "none",
            each.epochs,
            f"{each.eq224:.1f}",
            each.optimizer,
            f"{each.size_at(0, each.epochs)}-{each.image_size}"
            if each.start_size
            else str(each.image_size),
            each.eval_size,
            each.remarks,
        )
        for each in chosen
    ]
    columns = ("recipe", "published top-1, %", "epochs", "cost", "by", "train", "eval", "remarks")
    return table_lines(columns, rows)


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
