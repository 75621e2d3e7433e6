"""The two commands, imagenet-prep and resnet.

Each command is a function in `prep/commands` or `training/commands`. All import their work inside
the function, so `--help` needs neither torch nor NumPy.
"""

from __future__ import annotations

import click

from prep.commands.doctor import prep_doctor
from prep.commands.extract import extract
from prep.commands.index import index
from prep.commands.inspect import inspect
from prep.commands.organize import organize_val
from prep.commands.sample_data import sample_data
from prep.commands.shard import shard
from prep.commands.verify import verify
from training.commands.bench import bench
from training.commands.doctor import resnet_doctor
from training.commands.evaluate import evaluate
from training.commands.export import export
from training.commands.info import info
from training.commands.predict import predict
from training.commands.recipes import recipes
from training.commands.report import report
from training.commands.train import train

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_PREP = (sample_data, extract, organize_val, shard, index, verify, inspect, prep_doctor)
_RESNET = (resnet_doctor, recipes, train, evaluate, predict, export, info, report, bench)


@click.group(context_settings=_SETTINGS, commands=_PREP)
@click.version_option(package_name="imagenet-resnet")
def imagenet_prep() -> None:
    """Prepare ImageNet: from the ILSVRC2012 archives to checked WebDataset shards.

    \b
    The usual way, straight from the archives (extraction is optional):
      imagenet-prep shard /data/archives --out /data/shards
      imagenet-prep verify /data/shards
      resnet train --shards /data/shards --model resnet50 --cards 1

    Every command can be stopped at any time; the same command goes on where it ended.
    """


@click.group(context_settings=_SETTINGS, commands=_RESNET)
@click.version_option(package_name="imagenet-resnet")
def resnet() -> None:
    """Train and evaluate ResNets from shards, on SDAA cards, CUDA GPUs or the CPU.

    \b
      resnet train --shards /data/shards --model resnet50 --cards 4 --out runs/r50
      resnet eval runs/r50/best.pt --shards /data/shards
      resnet export runs/r50/best.pt --out r50.onnx

    A run that was stopped, killed or finished is gone on with by the same command.
    """
    from training.device import prepare_environment

    prepare_environment()  # before whichever command imports torch
