"""The trainer on simulated SPAs: tensors whose device is sdaa, four devices, tccl, fp16.

tests/simulator is the stand-in for torch_sdaa (test_stand_in.py). What it cannot show: that the
real one works.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shards.progress import Silent
from training.checkpoint import Checkpoint, load_checkpoint
from training.config import resolve
from training.distributed import place_from_environment
from training.export import OnnxOptions, export_onnx
from training.processes import processes_here
from training.results.evaluation import How, evaluate_saved
from training.results.saved import open_saved
from training.trainer import train

pytestmark = pytest.mark.usefixtures("simulated_sdaa")

BATCH = 12  # of 51 training samples: 4 steps an epoch
SIZE = 32
FAR_TOO_LARGE = 2.0**40  # a loss scale at which float16 gradients overflow
# What a run of fp16 on one device does there; the last five are of the gradient's and the weights'
# norm, which the vendor's trainer does not take.
OPERATORS = {
    "_amp_foreach_non_finite_check_and_unscale_", "_amp_update_scale_", "_local_scalar_dense",
    "_log_softmax", "_log_softmax_backward_data", "_to_copy", "add", "add_", "addmm", "clone",
    "convolution", "convolution_backward", "detach", "div", "div_", "empty", "eq", "expand",
    "full", "full_like", "masked_fill", "masked_fill_", "max_pool2d_with_indices",
    "max_pool2d_with_indices_backward", "mean", "mm", "mul", "mul_", "native_batch_norm",
    "native_batch_norm_backward", "neg", "nll_loss_backward", "nll_loss_forward", "ones_like",
    "reciprocal", "relu_", "select", "slice", "stack", "sub_", "sum", "t", "threshold_backward",
    "topk", "unsqueeze", "view", "zeros", "_foreach_norm", "linalg_vector_norm", "abs", "ne",
    "bitwise_not",
}  # fmt: skip
OPTIONS = ("--model", "resnet18", "--image-size", SIZE, "--lr", 0.01, "--log-every", 1)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def log_of(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (out / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


# --- the command line -------------------------------------------------------------------------


@pytest.mark.usefixtures("with_cards")
def test_auto_takes_the_cards_and_says_why(run: Run, shards: Path, tmp_path: Path) -> None:
    done = run(
        *("resnet", "train", "--shards", shards, "--out", tmp_path, *OPTIONS, "--json"),
        *("--nproc", 1, "--batch-size", BATCH, "--epochs", 1),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reason"] == "finished"  # the banner is not in it
    assert "simulated Torch-SDAA" in done.stderr
    assert (
        "device: sdaa:0 (4 SDAA devices found by SDAA_VISIBLE_DEVICES=0,1,2,3), fp16" in done.stderr
    )
    steps = log_of(tmp_path, "step")
    assert [step["loss_scale"] for step in steps] == [65536.0] * 4
    assert all(step["peak_memory"] > 100e6 for step in steps)
    (evaluation,) = log_of(tmp_path, "eval")
    assert evaluation["samples"] == 15


@pytest.mark.slow
@pytest.mark.usefixtures("with_cards")
@pytest.mark.parametrize(
    ("processes", "world"), [(("--cards", 1), 4), (("--nproc", 2), 2)], ids=["card", "two"]
)
def test_a_command_becomes_the_processes_of_its_cards(
    processes: tuple[str, int], world: int, run: Run, shards: Path, tmp_path: Path
) -> None:
    """One card is four SPAs, with a process each."""
    done = run(
        *("resnet", "train", "--shards", shards, "--out", tmp_path, *OPTIONS),
        *("--device", "sdaa", *processes, "--batch-size", BATCH // world, "--epochs", 1),
    )
    assert done.returncode == 0, done.stderr
    (start,) = log_of(tmp_path, "start")
    assert (start["plan"]["world"], start["device_reason"]) == (world, "asked for")
    assert log_of(tmp_path, "eval")[0]["samples"] == 15
    done = run(
        *("resnet", "eval", tmp_path / "last.pt", "--shards", shards, "--json"),
        *("--device", "sdaa", *processes),
    )
    assert json.loads(done.stdout)["device"] == "sdaa:0", done.stderr
    assert json.loads(done.stdout)["world"] == world


@pytest.mark.slow
@pytest.mark.usefixtures("with_cards")
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SDAA_VISIBLE_DEVICES", "", "torch_sdaa sees no device"),
        ("SDAA_SIMULATOR", "/no/driver.so", "torch_sdaa does not load (OSError: "),
    ],
    ids=["no device", "no driver"],
)
def test_a_torch_sdaa_that_is_of_no_use_is_named(
    name: str, value: str, said: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    done = run("resnet", "train", "--shards", tmp_path, *OPTIONS, "--device", "sdaa")
    assert done.returncode == 1
    assert said in done.stderr
    assert "setvars.sh" in done.stderr


@pytest.mark.usefixtures("with_cards")
def test_what_needs_no_device_works_without_its_driver(
    trained: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself torch would load an installed torch_sdaa, and fail with it."""
    monkeypatch.setenv("SDAA_SIMULATOR", "/no/driver.so")
    done = run("resnet", "info", trained, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["config"]["model"] == "resnet18"


# --- training's functions ---------------------------------------------------------------------


def train_on(device: Any, shards: Path, out: Path, scale: float | None, **options: Any) -> None:
    """Train a small network; `scale` is the loss scale to begin with, the recipe's if None."""
    world = place_from_environment()[1]
    given = {"model": "resnet18", "image_size": SIZE, "lr": 0.01, "log_every": 1, "threads": 1}
    config = resolve(
        **(given | {"batch_size": BATCH // world} | options),
        shards=shards,
        out=out,
        world=world,
        device=device,
    )
    if scale is not None:
        recipe = dataclasses.replace(config.recipe, loss_scale=scale)
        config = dataclasses.replace(config, recipe=recipe)
    train(config, progress=Silent(), on_record=lambda _record: None)


def train_fp32(device: Any, shards: Path, out: Path, steps: int) -> None:
    """In batches of 4, of which an epoch has 12; sooner done than 5 epochs of 4 steps."""
    batch = 4 // place_from_environment()[1]
    train_on(device, shards, out, None, amp="off", epochs=2, max_steps=steps, batch_size=batch)


def train_fp16(device: Any, shards: Path, out: Path, scale: float, steps: int) -> None:
    train_on(device, shards, out, scale, amp="fp16", epochs=1, max_steps=steps)


def assert_close(ours: Path, theirs: Path, bound: float = 1e-6) -> None:
    """Weights and momentum of two runs' last checkpoints differ by no more than `bound`."""
    first, second = load_checkpoint(ours / "last.pt"), load_checkpoint(theirs / "last.pt")
    assert first.position == second.position
    for mine, other in ((first.model, second.model), (momentum(first), momentum(second))):
        assert mine.keys() == other.keys() != set()
        assert max(float((mine[name] - other[name]).abs().max()) for name in mine) <= bound


def momentum(saved: Checkpoint) -> dict[str, Tensor]:
    """SGD's only state: of FusedSGD too."""
    assert all(state.keys() == {"momentum_buffer"} for state in saved.optimizer.values())
    return {name: state["momentum_buffer"] for name, state in saved.optimizer.items()}


@pytest.fixture(scope="module")
def on_cpus(ranks: Any, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps in float32 by two processes on the CPU."""
    out = tmp_path_factory.mktemp("cpus")
    assert ranks.run(train_fp32, "cpu", shards, out, 20, world=2) == [None, None]
    return out


def test_two_spas_compute_what_two_cpus_do(
    ranks: Any, spas: Any, on_cpus: Path, shards: Path, tmp_path: Path
) -> None:
    """Over 20 steps; CPUs can go on from there."""
    assert spas.run(train_fp32, "sdaa", shards, tmp_path, 20, world=2) == [None, None]
    assert_close(tmp_path, on_cpus)
    assert ranks.run(train_fp32, "cpu", shards, tmp_path, 21, world=2) == [None, None]
    assert [line["device"] for line in log_of(tmp_path, "start")] == ["sdaa:0", "cpu"]


@pytest.mark.slow
def test_a_run_moves_to_cpus_and_back(
    ranks: Any, spas: Any, on_cpus: Path, shards: Path, tmp_path: Path
) -> None:
    for device, steps in (("sdaa", 7), ("cpu", 14), ("sdaa", 20)):
        pool = spas if device == "sdaa" else ranks
        assert pool.run(train_fp32, device, shards, tmp_path, steps, world=2) == [None, None]
    assert [line["device"] for line in log_of(tmp_path, "start")] == ["sdaa:0", "cpu", "sdaa:0"]
    assert_close(tmp_path, on_cpus)


def test_a_step_that_overflows_is_skipped(spas: Any, shards: Path, tmp_path: Path) -> None:
    assert spas.run(train_fp16, "sdaa", shards, tmp_path, FAR_TOO_LARGE, 2, world=2) == [None] * 2
    saved = load_checkpoint(tmp_path / "last.pt")
    assert saved.scaler["scale"] == FAR_TOO_LARGE / 4  # halved after each
    assert saved.optimizer == {}
    assert saved.position.step == 2


def processes_of(cards: int) -> int:
    os.environ.pop("RANK")  # as the one process that is to start the others
    return processes_here("sdaa", cards, None)


def test_a_card_is_four_processes_and_there_is_one(spas: Any) -> None:
    assert spas.run(processes_of, 1, world=1) == [4]
    refused = "--cards 2 is 8 processes, but this machine shows 4 sdaa devices; give fewer cards"
    ((kind, said),) = spas.run(processes_of, 2, world=1)
    assert kind == "UsageError"
    assert said.startswith(refused)


def evaluate_on(device: Any, checkpoint: Path, shards: Path) -> tuple[int, int, float, str]:
    how = How(threads=1, device=device, amp="off")
    found = evaluate_saved([(checkpoint, "auto")], shards / "val", how, progress=Silent())
    result = found.models[0].evaluation
    return result.top1_count, result.samples, result.loss, str(found.device.torch_device)


@pytest.fixture(scope="module")
def trained(spas: Any, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an epoch in fp16 on a simulated SPA."""
    out = tmp_path_factory.mktemp("trained")
    assert spas.run(train_fp16, "sdaa", shards, out, 1024.0, 4, world=1) == [None]
    return out / "last.pt"


def test_a_checkpoint_of_the_cards_holds_plain_tensors(trained: Path) -> None:
    saved = load_checkpoint(trained)
    tensors = [*saved.model.values(), *momentum(saved).values()]
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors)
    assert saved.optimizer.keys() <= saved.model.keys()
    assert saved.scaler["scale"] == 1024


def test_the_cpu_finds_what_the_cards_do(
    ranks: Any, spas: Any, trained: Path, shards: Path
) -> None:
    there = spas.run(evaluate_on, "sdaa", trained, shards, world=2)
    here = ranks.run(evaluate_on, "cpu", trained, shards, world=1)[0]
    assert [place for *_, place in there] == ["sdaa:0", "sdaa:1"]
    assert there[0][:2] == there[1][:2] == here[:2]
    assert there[0][2] == pytest.approx(here[2], rel=1e-5)


def test_a_checkpoint_of_the_cards_is_exported(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    report = export_onnx(open_saved(trained), tmp_path / "model.onnx", options=OnnxOptions())
    assert report.agreement is not None


class _Seen(TorchDispatchMode):
    """Notes the operators that tensors on the cards go through."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        if any(isinstance(leaf, Tensor) and leaf.device.type == "sdaa" for leaf in leaves):
            self.names.add(func.overloadpacket.__name__)
        return result


def operators_of_a_run(shards: Path, out: Path) -> set[str]:
    with _Seen() as seen:
        train_fp16("sdaa", shards, out, 1024.0, 5)
    return seen.names


def test_a_run_needs_few_operators_of_the_cards(spas: Any, shards: Path, tmp_path: Path) -> None:
    """Those of the vendor's own trainer, and tensors' plainest; else look for another way."""
    (used,) = spas.run(operators_of_a_run, shards, tmp_path, world=1)
    assert sorted(used - OPERATORS) == []
