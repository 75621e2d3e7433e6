"""Options that several commands of resnet have."""

from __future__ import annotations

import click

from shards.console import PATH

device_option = click.option(
    "--device",
    type=click.Choice(["auto", "sdaa", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto tries them in that order and says why.",
)

amp_option = click.option(
    "--amp",
    type=click.Choice(["auto", "off", "fp16", "bf16"]),
    help="Mixed precision. auto: fp16 with a gradient scaler on sdaa and cuda, off on the CPU.",
)

image_size_option = click.option(
    "--image-size", type=int, help="Side of the crop in pixels.  [default: the recipe's, 224]"
)

batch_size_option = click.option(
    "--batch-size", type=int, help="Samples a process and step.  [default: the recipe's, 64]"
)

loader_threads_option = click.option(
    "--workers", type=int, help="Decoding threads a process.  [default: its share of the cores]"
)

shards_option = click.option(
    "--shards",
    type=PATH,
    required=True,
    help="Folder of `imagenet-prep shard` or `imagenet-prep index`: train/ and val/; or one with "
    "class folders, which are indexed once.",
)

nproc_option = click.option(
    "--nproc", type=click.IntRange(min=1), help="Processes on this machine (instead of --cards)."
)

cards_option = click.option(
    "--cards",
    type=click.IntRange(min=1),
    help="Cards of this machine: 4 processes each on sdaa, 1 on cuda.  [default: one]",
)

nodes_option = click.option(
    "--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Machines."
)

node_rank_option = click.option(
    "--node-rank", type=int, default=0, show_default=True, help="Number of this machine."
)

master_option = click.option("--master", help="HOST:PORT of machine 0, for --nodes above 1.")

join_timeout_option = click.option(
    "--join-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=300.0,
    show_default=True,
    help="How long to wait for machines and processes that do not come.",
)

affinity_option = click.option(
    "--affinity",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="auto: each of several processes runs on its own share of the machine's cores.",
)
