"""The recipes' values, sizes and costs, and values set otherwise, by options and in files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
import pytest
import torchvision
from click.testing import CliRunner

import cli
from shards.errors import DamagedData, ToolError, UsageError
from training.commands.settings import kind_of
from training.config import TrainConfig, config_values, derived, resolve
from training.config_file import config_text, read_config
from training.recipes import RECIPES, Recipe, find_recipe, recipe_values
from training.settings import SETTINGS, changed


def config(**options: Any) -> TrainConfig:
    given: dict[str, Any] = {"shards": Path("S"), "out": Path("R"), "world": 1, "threads": 1}
    return resolve(**(given | options))


def plan_of(made: TrainConfig) -> dict[str, object]:
    return derived(
        made,
        samples=9999,
        val_samples=1,
        classes=3,
        world=1,
        train_shards=1,
        val_shards=1,
    )


# --- what they say ---


def test_every_recipe_says_where_it_is_from() -> None:
    names = {field.name for field in dataclasses.fields(Recipe)}
    for recipe in RECIPES.values():
        assert recipe.source
        assert recipe.remarks
        assert {value for value, _ in recipe.notes} <= names
        assert json.loads(json.dumps(recipe_values(recipe))) == recipe_values(recipe)


def test_torchvisions_figures_are_torchvisions() -> None:
    for model, top1 in find_recipe("torchvision-v1").published:
        weights = torchvision.models.get_model_weights(model)["IMAGENET1K_V1"]
        assert weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] == top1


@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("seed", 50),
        ("nvidia-90", 90),
        ("torchvision-v1", 90),
        ("a3", 100 * (160 / 224) ** 2),
        # ffcv's rn50_32_epochs: 160 up to epoch 24, then 192
        ("fast", 25 * (160 / 224) ** 2 + 7 * (192 / 224) ** 2),
        ("mlperf", 37),
    ],
)
def test_what_a_recipe_costs(name: str, cost: float) -> None:
    assert find_recipe(name).eq224 == pytest.approx(cost)


# --- sizes ---


def ffcv_resolution(epoch: int, low: int, high: int, start: int, end: int) -> int:
    """get_resolution of ffcv-imagenet's train_imagenet.py, written down again."""
    if epoch <= start:
        return low
    if epoch >= end:
        return high
    return round((low + (high - low) * (epoch - start) / (end - start)) / 32) * 32


@pytest.mark.parametrize(("epochs", "start", "end"), [(32, 23, 27), (64, 46, 54)])
def test_pictures_grow_as_ffcvs(epochs: int, start: int, end: int) -> None:
    made = config(recipe="fast", epochs=epochs)
    sizes = [made.image_size_at(epoch) for epoch in range(epochs)]
    assert sizes == [ffcv_resolution(epoch, 160, 192, start, end) for epoch in range(epochs)]
    plan = plan_of(made)
    assert str(plan["image_size"]).startswith("160 from epoch 0, 192 from epoch ")


def test_sizes_keep_their_ratio_to_the_one_that_is_given() -> None:
    assert config(image_size=64).recipe.eval_short_side == 73
    a3 = config(recipe="a3", image_size=80).recipe
    assert (a3.image_size, a3.eval_size, a3.eval_short_side) == (80, 112, 118)
    fast = config(recipe="fast", image_size=96)
    assert (fast.image_size_at(0), fast.image_size_at(31)) == (64, 96)  # 80 is no multiple of 32
    assert config(recipe="fast", image_size=32).image_size_at(0) == 32


def test_a3_is_evaluated_at_its_own_size() -> None:
    recipe = find_recipe("a3")
    assert (recipe.eval_size, recipe.eval_short_side, recipe.interpolation) == (224, 236, "bicubic")


# --- set otherwise ---


def test_any_value_can_be_set() -> None:
    for recipe in RECIPES.values():
        same = {name: getattr(recipe, name) for name in SETTINGS}
        if recipe.warmup_per_256:
            del same["warmup_epochs"]
        assert changed(recipe, same) == recipe


def test_warm_up_that_is_given_is_all_of_it() -> None:
    assert config(settings={"warmup_epochs": 5}, batch_size=1024).schedule.warmup == 5


def test_what_is_changed_stands_in_the_plan() -> None:
    made = config(settings={"momentum": 0.9, "crop_scale": [0.25, 1]})
    plan = plan_of(made)
    assert plan["recipe"] == (
        "seed, with crop_scale [0.25, 1.0] instead of [0.08, 1.0], momentum 0.9 instead of 0.875"
    )
    values: Any = config_values(made)["recipe"]
    assert (values["momentum"], values["crop_scale"]) == (0.9, [0.25, 1.0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"momentun": 0.9}, "a recipe has no momentun; did you mean momentum?"),
        ({"epochs": 3}, "a recipe has no epochs"),
        ({"momentum": "0.9"}, 'momentum is "0.9"; it must be a number'),
        ({"momentum": True}, "momentum is true; it must be a number"),
        ({"momentum": float("nan")}, "momentum is nan; it must be a number"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be at least 0 and below 1"),
        ({"warmup_epochs": 1.5}, "warmup_epochs is 1.5; it must be a whole number"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001; it must be 0 or more"),
        ({"drop_last": 1}, "drop_last is 1; it must be true or false"),
        ({"init": "fan"}, 'init is "fan"; it must be one of fan_in, fan_out'),
        ({"crop_scale": 0.5}, "crop_scale is 0.5; it must be two numbers"),
        ({"crop_scale": [1, 0.5]}, r"crop_scale is \[1.0, 0.5\]; it must be two rising numbers"),
        ({"rand_augment": 11}, "rand_augment is 11.0; it must be from 0 to 10"),
        ({"nesterov": True, "momentum": 0}, "nesterov needs an optimizer with momentum"),
        ({"eval_size": 16}, "eval_size is 16; it must be at least 32"),
        ({"start_size": 256}, "start_size is 256; it must be at most --image-size 224"),
    ],
)
def test_a_setting_that_cannot_be_is_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config(settings=settings)


# --- in a file ---

OPTIONS: dict[str, Any] = {"epochs": int, "lr": float, "recipe": str, "compile": bool}


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_a_file_sets_options_and_values(tmp_path: Path) -> None:
    text = 'recipe = "a3"\nepochs = 3\nlr = 1\nweight-decay = 0.03\ncrop_scale = [0.2, 1]\n'
    assert read_config(written(tmp_path, text), OPTIONS) == {
        "recipe": "a3",
        "epochs": 3,
        "lr": 1.0,
        "weight_decay": 0.03,
        "crop_scale": (0.2, 1.0),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("weight_dekay = 1", "there is no weight_dekay; did you mean weight_decay?"),
        ("epoch = 1", "there is no epoch; did you mean epochs?"),
        ("zzz = 1", "there is no zzz; `resnet recipes NAME`"),
        ("[optimizer]\nmomentum = 0.9", r"\[optimizer\] is a table"),
        ('epochs = "3"', 'epochs is "3"; it must be a whole number'),
        ("compile = 1", "compile is 1; it must be true or false"),
        ("eval-size = 1\neval_size = 2", "eval_size is there twice"),
        ('optimizer = "adam"', 'optimizer is "adam"; it must be one of sgd, lars, lamb'),
        ("momentum = 1.5", "momentum is 1.5; it must be at least 0 and below 1"),
        ("base_lr = 1.0", "there is no base_lr to be set; use lr"),
        ("recipe = true", "recipe is true; it must be a text in quotes"),
    ],
)
def test_a_file_that_is_wrong_is_told_by_key(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=said) as caught:
        read_config(path, OPTIONS)
    assert str(caught.value).startswith(str(path))


def test_numbers_pass_for_texts_and_a_byte_order_mark_for_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffmax-time = 90\nlr = 1\n")
    assert read_config(path, {"max_time": str, "lr": float}) == {"max_time": "90", "lr": 1.0}


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"cannot be read \(Is a directory\); give --config"):
        read_config(tmp_path, {})
    with pytest.raises(ToolError, match=r"none.toml does not exist; give --config"):
        read_config(tmp_path / "none.toml", {})
    for content in (b"lr = \n", b"\xff\xfe"):
        path = tmp_path / "other.toml"
        path.write_bytes(content)
        with pytest.raises(DamagedData, match=r"other.toml is not a TOML file"):
            read_config(path, {})


@pytest.mark.parametrize("extra", [{}, {"lr": 0.5, "patience": 3, "compile": True}])
def test_a_configuration_written_down_is_the_same_on_another_number_of_processes(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    settings = {"mixup": 0.2, "grow": [0.1, 0.5], "start_size": 128, "nesterov": True}
    given: dict[str, Any] = {"recipe": "nvidia-90", "epochs": 7, "image_size": 160, **extra}
    made = config(settings=settings, stem="small", world=4, **given)
    parameters: list[click.Parameter] = cli.resnet.commands["train"].params
    options = {
        str(each.name): kind_of(each) for each in parameters if isinstance(each, click.Option)
    }
    values = read_config(written(tmp_path, config_text(made)), options)
    again = {name: values.pop(name) for name in list(values) if name not in SETTINGS}
    here = config(settings=values, world=3, **again)
    assert (here.global_batch, here.lr) == (made.global_batch, made.lr)
    assert here == dataclasses.replace(made, batch_size=342, global_batch_given=True)


# --- on the command line ---


def test_the_command_line_goes_before_the_file_and_that_before_the_recipe(
    shards: Path, tmp_path: Path
) -> None:
    text = (
        'recipe = "nvidia-90"\nepochs = 7\nmomentum = 0.8\nmixup = 0.3\ncrop_scale = [0.3, 1]\n'
        'model = "resnet18"\nmax-steps = 1\nimage-size = 32\nbatch-size = 12\nworkers = 1\n'
    )
    path = str(written(tmp_path, text))
    fixed = ["--shards", str(shards), "--out", str(tmp_path / "run"), "--device", "cpu"]
    command = ["train", *fixed, "--config", path, "--epochs", "5", "--mixup", "0"]
    done = CliRunner().invoke(cli.resnet, command)
    assert done.exit_code == 0, done.output
    start = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    made, recipe = start["config"], start["config"]["recipe"]
    assert (recipe["name"], made["epochs"], made["batch_size"]) == ("nvidia-90", 5, 12)
    assert (recipe["momentum"], recipe["mixup"], recipe["weight_decay"]) == (0.8, 0.0, 2**-15)
    assert recipe["crop_scale"] == [0.3, 1.0]


def test_a_global_batch_in_a_file_gives_way_to_the_command_lines_batch(
    shards: Path, tmp_path: Path
) -> None:
    path = str(written(tmp_path, 'global-batch = 24\nmodel = "resnet18"\nmax-steps = 1\n'))
    fixed = ["--shards", str(shards), "--out", str(tmp_path / "run"), "--device", "cpu"]
    sizes = ["--image-size", "32", "--batch-size", "12"]
    done = CliRunner().invoke(cli.resnet, ["train", *fixed, "--config", path, *sizes])
    assert done.exit_code == 0, done.output
    assert "\nglobal batch: 12\n" in done.stderr
    written_down = (tmp_path / "run" / "config.toml").read_text()
    assert "\nglobal_batch = 12\n" in written_down
    assert "\nlr = " not in written_down


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate = 1", "there is no learning_rate"),
        ("source = 1", "there is no source; `resnet recipes NAME`"),  # grace is not meant
        ("nproc = 0", "nproc: 0 is not in the range x>=1"),
        ('stem = "tiny"', "stem: 'tiny' is not one of"),
    ],
)
def test_a_wrong_file_ends_the_command_with_usage(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    command = ["train", "--shards", "S", "--config", str(path)]
    done = CliRunner().invoke(cli.resnet, command)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {path}: {said}")
    again = CliRunner().invoke(cli.resnet, [*command, "--config", str(path)])
    assert again.exit_code == 2
    assert again.stderr.startswith("error: --config is there 2 times")


def test_recipes_are_shown() -> None:
    done = CliRunner().invoke(cli.resnet, ["recipes"])
    assert done.exit_code == 0
    for name in RECIPES:
        assert done.stdout.count(f"\n{name} ") == 2
        assert f"\n{name}: " in done.stdout
    assert "0.256 for 256   2 per 256  cosine-by-epoch  sgd" in done.stdout
    one = CliRunner().invoke(cli.resnet, ["recipes", "a3"])
    assert "0.008" in one.stdout
    assert "not verified" in one.stdout
    shown = json.loads(CliRunner().invoke(cli.resnet, ["recipes", "a3", "--json"]).stdout)
    assert shown["weight_decay"] == 0.02
    assert shown["published"]["resnet50"] == 78.052
    every = json.loads(CliRunner().invoke(cli.resnet, ["recipes", "--json"]).stdout)
    assert [each["name"] for each in every["recipes"]] == list(RECIPES)
    assert CliRunner().invoke(cli.resnet, ["recipes", "best"]).exit_code == 2
