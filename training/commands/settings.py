"""Values of the recipe as options of `resnet train`, and --config, which takes all of them."""

from __future__ import annotations

from pathlib import Path

import click

from shards.console import PATH, Command, Function


def settings_options(function: Function) -> Function:
    """Options that set single values of the recipe, and --config, which can set all of them."""
    texts: dict[str, tuple[object, str]] = {
        "--optimizer": (click.Choice(["sgd", "lars", "lamb"]), "lars, lamb: timm's."),
        "--momentum": (float, ""),
        "--weight-decay": (float, ""),
        "--schedule": (
            click.Choice(["cosine-by-epoch", "cosine", "step", "poly", "triangular"]),
            "Form of the learning rate after warm-up.",
        ),
        "--warmup-epochs": (int, "All of them, instead of the recipe's."),
        "--label-smoothing": (float, ""),
        "--mixup": (float, "Alpha; 0 for none. With --cutmix too, a batch gets one of the two."),
        "--cutmix": (float, "Alpha; 0 for none."),
        "--rand-augment": (float, "Magnitude, 0 to 10, of timm's rand-m...-mstd0.5-inc1."),
        "--ema-decay": (float, "Average the weights with this decay a step, as 0.9999."),
        "--eval-size": (int, "Pixels a side of the evaluation crop."),
    }
    for option, (kind, text) in reversed(texts.items()):
        said = f"{text}  [default: the recipe's]".strip()
        function = click.option(option, type=kind, help=said)(function)
    return click.option(
        "--config",
        "config_file",
        type=PATH,
        multiple=True,
        metavar="FILE.toml",
        is_eager=True,
        callback=_read_config,
        help="Take options and any value of the recipe from FILE, by their names, as `lr = 0.5`. "
        "The command line goes before it.",
    )(function)


def _read_config(
    ctx: click.Context, _: click.Parameter, paths: tuple[Path, ...]
) -> dict[str, object]:
    """The recipe's values in a file; options that are in it become these options' defaults."""
    if not paths or ctx.resilient_parsing:
        return {}
    from shards.errors import ToolError

    options = {
        str(each.name): each
        for each in ctx.command.params
        if isinstance(each, click.Option)
        and each.expose_value
        and each.name not in ("config_file", "as_json")
    }
    try:
        values = _values_of(paths, options, ctx)
    except ToolError as error:
        assert isinstance(ctx.command, Command)
        ctx.command.report(error)
        ctx.exit(error.exit_code)
    ctx.default_map = {name: value for name, value in values.items() if name in options}
    return {name: value for name, value in values.items() if name not in options}


def _values_of(
    paths: tuple[Path, ...], options: dict[str, click.Option], ctx: click.Context
) -> dict[str, object]:
    """What the only file sets. Raises ToolError, with its name, for what an option cannot be."""
    from shards.errors import UsageError
    from training.config_file import read_config

    if len(paths) > 1:
        raise UsageError(
            f"--config is there {len(paths)} times ({', '.join(map(str, paths))}); give one file, "
            "and other values as options"
        )
    values = read_config(paths[0], {name: kind_of(option) for name, option in options.items()})
    for name in values.keys() & options:
        try:
            options[name].type.convert(values[name], options[name], ctx)
        except click.BadParameter as error:
            raise UsageError(f"{paths[0]}: {name}: {error.message.rstrip('.')}") from None
    return values


def kind_of(option: click.Option) -> type:
    """What an option's value is in a file."""
    if option.is_flag:
        return bool
    if isinstance(option.type, click.types.IntParamType):
        return int
    return float if isinstance(option.type, click.types.FloatParamType) else str
