"""The vendor's command lines: each comes to what ours would say, with one notice for each part."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import cli
from training.vendor import RULES, translate

Run = Callable[..., subprocess.CompletedProcess[str]]
TRAIN = cli.resnet.commands["train"]
DATA = "--dataset_path /datasets/imagenet/"
MIXED = "--grad_scale True --autocast True"
CARDS = f"--bs 64 --device sdaa {DATA} {MIXED}"
OUR_DATA = "--shards /datasets/imagenet/"
OUR_CARDS = f"--batch-size 64 --device sdaa {OUR_DATA} --amp fp16"
SECOND = "--nnode 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29500"

# The commands of README 2.4 and run_scripts/test.sh, then what else the launcher's help promises.
COMMANDS = {
    "one card": (
        f"--model_name resnet50 --nproc_per_node 4 --lr 0.256 --epoch 50 {CARDS}",
        f"--model resnet50 --nproc 4 --lr 0.256 --epochs 50 {OUR_CARDS}",
    ),
    "four cards": (
        f"--model_name resnet50 --nproc_per_node 16 --lr 1.024 --epoch 50 {CARDS}",
        f"--model resnet50 --nproc 16 --lr 1.024 --epochs 50 {OUR_CARDS}",
    ),
    "eight cards": (
        f"--model_name resnet50 --nproc_per_node 32 --lr 2.048 --epoch 90 {CARDS}",
        f"--model resnet50 --nproc 32 --lr 2.048 --epochs 90 {OUR_CARDS}",
    ),
    "two machines, the first": (
        (
            f"{SECOND.replace('rank 1', 'rank 0')} --nproc_per_node 16 --lr 2.048 --epoch 50 "
            f"--model_name resnet50 {CARDS}"
        ),
        (
            "--nodes 2 --node-rank 0 --master 10.0.0.1:29500 --nproc 16 --lr 2.048 --epochs 50 "
            f"--model resnet50 {OUR_CARDS}"
        ),
    ),
    "two machines, the second": (
        f"{SECOND} --nproc_per_node 16 --lr 2.048 --epoch 50 --model_name resnet50 {CARDS}",
        (
            "--nodes 2 --node-rank 1 --master 10.0.0.1:29500 --nproc 16 --lr 2.048 --epochs 50 "
            f"--model resnet50 {OUR_CARDS}"
        ),
    ),
    "a few steps on the CPU": (
        (
            "--model_name resnet18 --batch_size=32 --learning-rate=1e-3 --step 20 --device cpu "
            f"{DATA} {MIXED}"
        ),
        (
            f"--model resnet18 --batch-size 32 --lr 1e-3 --max-steps 20 --device cpu {OUR_DATA} "
            "--nproc 1 --epochs 1 --amp bf16"
        ),
    ),
    "what is not said": (
        f"--model_name resnet101 --bs 64 --lr 0.1 --device cuda {DATA}",
        (
            f"--model resnet101 --batch-size 64 --lr 0.1 --device cuda {OUR_DATA} "
            "--nproc 1 --epochs 1 --amp off"
        ),
    ),
}

# Every option of run_scripts/argument.py that is not spelt alike here: given, and what it comes to.
OPTIONS = [
    ("--model_name resnet18", "--model resnet18"),
    ("--model_name resnet101", "--model resnet101"),
    ("--model_name fused_resnet50", "--model resnet50"),
    ("--epoch 90", "--epochs 90"),
    ("--step 20", "--max-steps 20"),
    ("--step -1", ""),
    ("--batch_size 32", "--batch-size 32"),
    ("--bs=32", "--batch-size 32"),
    ("--bs 32 --batch_size 032", "--batch-size 32"),
    ("--learning-rate 1e-3", "--lr 0.001"),
    ("--nproc_per_node 16", "--nproc 16"),
    ("--node_rank 1", "--node-rank 1"),
    ("--nnode 2", "--nodes 2"),
    ("--master_addr 127.0.0.1", ""),
    ("--master_addr 127.0.0.1 --master_port 29521", ""),
    ("--num_workers 2", "--workers 2"),
    ("--num_workers 0", "--workers 1"),
    ("--autocast True --grad_scale True", "--amp auto"),
    ("--autocast yes", "--amp auto"),
    ("--autocast f", "--amp off"),
    ("--grad_scale T", "--amp off"),
    ("--autocast 0 --grad_scale NO", "--amp off"),
    ("--warm_up -1", ""),
    ("--warm_up 5", "--warmup-epochs 5"),
    ("--warm_up 0", "--warmup-epochs 0"),
    ("--early_stop -1", ""),
    ("--dataset imagenet", ""),
    ("--dataset cifar10", ""),
    ("--compile True", "--compile"),
    ("--compile=True", "--compile"),
    ("--compile False", ""),
    ("--mlperf_mode False", ""),
    ("--mlperf_mode True", "--recipe mlperf"),
    ("--profiler False", ""),
    ("--profiler True", "--profile ./profiler_log"),
    ("--profiler True --profiler_path traces", "--profile traces"),
    ("--profiler_path traces", ""),
    ("--precision_align False", ""),
    ("--precision_align_cuda_path a --precision_align_log_path b", ""),
]

SPELT_ALIKE = {"--lr", "--device", "--resume", "--optimizer"}
BARE = {"--compile"}  # ours without a value, the vendor's with one
LAUNCHERS = {
    "--model_name", "--epoch", "--step", "--batch_size", "--bs", "--dataset_path",
    "--nproc_per_node", "--nnode", "--node_rank", "--master_addr", "--master_port",
    "--precision_align", "--precision_align_cuda_path", "--precision_align_log_path", "--lr",
    "--learning-rate", "--num_workers", "--device", "--profiler", "--autocast", "--compile",
    "--grad_scale", "--profiler_path", "--early_stop", "--mlperf_mode", "--warm_up", "--optimizer",
    "--dataset", "--resume",
}  # fmt: skip


def parsed(line: str) -> dict[str, Any]:
    return TRAIN.make_context("train", shlex.split(line)).params


@pytest.fixture
def notices(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The lines that were told since the last call; all of them are notices."""

    def take() -> list[str]:
        told = capsys.readouterr()
        lines = told.err.splitlines()
        assert told.out == ""
        assert all(line.startswith("note: ") for line in lines)
        return [line.removeprefix("note: ") for line in lines]

    return take


@pytest.mark.parametrize(("vendors", "ours"), COMMANDS.values(), ids=COMMANDS)
def test_a_published_command_is_the_same_command_of_ours(
    notices: Callable[[], list[str]], vendors: str, ours: str
) -> None:
    assert parsed(vendors) == parsed(ours)
    told = notices()
    translated = {word.partition("=")[0] for word in vendors.split() if word.startswith("--")}
    for option in translated - SPELT_ALIKE:
        assert sum(f"{option} " in f"{line.partition(' is ')[0]} " for line in told) == 1, option
    assert len(set(told)) == len(told)


@pytest.mark.parametrize(("vendors", "ours"), OPTIONS)
def test_every_option_comes_to_ours_with_one_notice(
    notices: Callable[[], list[str]], vendors: str, ours: str
) -> None:
    assert parsed(f"--shards S {vendors}") == parsed(f"--shards S {ours}")
    (told,) = notices()
    assert told.startswith(vendors.replace("=", " "))
    assert ours.replace("0.001", "1e-3") in told


def test_the_table_holds_every_option_of_the_launcher_once() -> None:
    spellings = [name for rule in RULES for name in rule.spellings]
    assert sorted(spellings) == sorted(LAUNCHERS - SPELT_ALIKE)
    ours = {name for parameter in TRAIN.params for name in parameter.opts}
    assert ours & LAUNCHERS == SPELT_ALIKE | BARE
    assert {name for rule in RULES if rule.bare for name in rule.spellings} == BARE
    tried = {word.partition("=")[0] for vendors, _ in OPTIONS for word in vendors.split()}
    assert set(spellings) - tried == {"--dataset_path"}


def test_ours_alone_is_left_as_it_is(notices: Callable[[], list[str]]) -> None:
    words = ["--shards", "S", "--out", "--resume", "--lr=0.1", "--", "--bs", "64"]
    assert translate(words).argv == words
    parsed("--shards S --model resnet18 --lr 0.1")
    assert notices() == []


def test_a_switch_of_ours_is_left_as_it_is(notices: Callable[[], list[str]]) -> None:
    for words in ("--compile --shards S", "--shards S --compile"):
        assert translate(words.split()).argv == words.split()
        assert parsed(words)["compile"] is True
    assert parsed("--shards S --compile --compile True")["compile"] is True
    assert notices() == [
        "--compile True is --compile here; where that fails training goes on without"
    ]


@pytest.mark.parametrize(
    "processes",
    ["--nproc_per_node 2 --bs 6", "--nnode 2 --node_rank 0 --bs 6 --master_addr a", "--bs 12"],
)
def test_an_early_stop_is_so_many_epochs_of_steps(
    notices: Callable[[], list[str]], shards: Path, processes: str
) -> None:
    """51 training images are 4 steps of 12."""
    line = f"{processes} --dataset_path {shlex.quote(str(shards))} --epoch 50 --early_stop 3"
    found = parsed(line)
    assert (found["max_steps"], found["epochs"]) == (12, 50)
    told = [notice for notice in notices() if notice.startswith("--early_stop")]
    assert [notice.partition(";")[0] for notice in told] == [
        "--early_stop 3 is --max-steps 12 here: 3 of 4 steps"
    ]
    assert parsed(f"{line} --step 5")["max_steps"] == 5


def test_both_spellings_may_say_the_same(notices: Callable[[], list[str]]) -> None:
    assert parsed("--shards S --bs 64 --batch-size=64 --learning-rate 0.1 --lr 1e-1") == parsed(
        "--shards S --batch-size 64 --lr 0.1"
    )
    assert len(notices()) == 2


@pytest.mark.parametrize(
    ("words", "amp", "told"),
    [
        ("--device cpu --autocast True --grad_scale True", "bf16", "the gradient scaler is off"),
        ("--autocast True --device=cpu", "bf16", "on the CPU mixed precision is bf16"),
        ("--device cuda --autocast True", "fp16", "has a gradient scaler always"),
        ("--device auto --autocast True", "auto", "off on the CPU; --device cpu makes it bf16"),
        ("--device cpu --grad_scale True", "off", "float32 needs no gradient scaler"),
    ],
)
def test_mixed_precision_is_what_the_device_has(
    notices: Callable[[], list[str]], words: str, amp: str, told: str
) -> None:
    assert parsed(f"--shards S {words}")["amp"] == amp
    (notice,) = notices()
    assert told in notice


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--bs", "--bs needs a value"),
        ("--bs --lr 0.1", "--bs needs a value"),
        ("--bs many", "--bs many: it must be a whole number, at least 1"),
        ("--bs 0", "--bs 0: it must"),
        ("--bs=", "--bs : it must"),
        ("--epoch -1", "--epoch -1: it must"),
        ("--step -2", "--step -2: it must be a whole number, at least -1"),
        ("--nproc_per_node 0", "--nproc_per_node 0: it must"),
        ("--nnode 1.5", "--nnode 1.5: it must"),
        ("--node_rank -1", "--node_rank -1: it must"),
        ("--num_workers -1", "--num_workers -1: it must"),
        ("--master_addr a --master_port 65536", "--master_port 65536: the highest"),
        ("--master_port no", "--master_port no: it must"),
        ("--nnode 2 --master_port 29500", "--master_addr"),
        ("--learning-rate nan", "--learning-rate nan: it must be a positive number"),
        ("--learning-rate fast", "--learning-rate fast: it must be a positive number"),
        ("--autocast maybe", "--autocast maybe: say True or False"),
        ("--autocast True --grad_scale 2", "--grad_scale 2: say True or False"),
        ("--profiler on", "--profiler on: say True or False"),
        ("--compile max", "--compile max: say True or False"),
        ("--model_name vgg16", "--model_name vgg16: choose one of resnet18"),
        ("--model_name resnet50_v10", "choose resnet50, which is v1.5"),
        ("--dataset mnist", "--dataset mnist: choose one of imagenet"),
        (
            "--warm_up 5 --warmup-epochs 4",
            "--warm_up 5 and --warmup-epochs 4 contradict each other",
        ),
        ("--warm_up long", "--warm_up long: it must"),
        ("--early_stop 3", "--max-steps STEPS"),
        ("--early_stop 0", "--early_stop 0: that is no training at all"),
        ("--mlperf_mode True --recipe seed", "--mlperf_mode True and --recipe seed contradict"),
        ("--mlperf_mode 2", "--mlperf_mode 2: say True or False"),
        ("--profiler True --profiler_path a --profile b", "contradict each other"),
        ("--precision_align True", "--max-steps 20"),
        ("--bs 64 --batch-size 32", "--bs 64 and --batch-size 32 contradict each other"),
        ("--batch-size=32 --bs 64", "--bs 64 and --batch-size 32 contradict each other"),
        ("--bs 64 --batch_size 32", "--bs 64 and --batch_size 32 contradict each other"),
        ("--bs 64 --bs 32", "--bs 64 and --bs 32 contradict each other"),
        ("--learning-rate 0.1 --lr 0.2", "--learning-rate 0.1 and --lr 0.2 contradict"),
        ("--autocast True --amp off", "--autocast True and --amp off contradict each other"),
        ("--dataset_path T", "--dataset_path T and --shards S contradict each other"),
        ("--nnode 2 --master_addr a --master b:1", "contradict each other"),
    ],
)
def test_what_cannot_be_is_one_sentence_that_names_the_option(
    capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    with pytest.raises(click.exceptions.Exit) as end:
        parsed(f"--shards S {line}")
    assert end.value.exit_code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ")
    assert words in told


def test_a_shell_completes_without_a_word_of_the_translation(script: Callable[[str], str]) -> None:
    done = subprocess.run(
        [script("resnet")],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "_RESNET_COMPLETE": "bash_complete",
            "COMP_WORDS": "resnet train --bs --mast",
            "COMP_CWORD": "3",
        },
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--master" in done.stdout
