"""The trainer on simulated SPAs: tensors whose device is sdaa, four devices, tccl, fp16.

tests/simulator is the stand-in for torch_sdaa. What it cannot show: that the real one works.
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
import torch

from shards.progress import Silent
from training.checkpoint import load_checkpoint
from training.config import resolve
from training.device import choose
from training.distributed import joined, place_from_environment, sum_integers
from training.evaluate import evaluate_checkpoint
from training.export import export_onnx
from training.processes import processes_here
from training.trainer import train

pytestmark = pytest.mark.usefixtures("simulated_sdaa")

BATCH = 12  # of 51 training samples: 4 steps an epoch
SIZE = 32
FAR_TOO_LARGE = 2.0**40  # a loss scale at which float16 gradients overflow
OPTIONS = ("--model", "resnet18", "--image-size", SIZE, "--lr", 0.01, "--log-every", 1)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def with_cards(simulated_sdaa: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands that a test starts find the simulated torch_sdaa."""
    for name, value in simulated_sdaa.items():
        monkeypatch.setenv(name, value)


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
    assert "device: sdaa:0 (4 SDAA devices found), fp16" in done.stderr
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
    for mine, other in ((first.model, second.model), (first.optimizer, second.optimizer)):
        assert mine.keys() == other.keys() != set()
        assert max(float((mine[name] - other[name]).abs().max()) for name in mine) <= bound


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
    found = evaluate_checkpoint(
        checkpoint, shards / "val", threads=1, device=device, amp="off", progress=Silent()
    )
    result = found.evaluation
    return result.top1_count, result.samples, result.loss, found.device


@pytest.fixture(scope="module")
def trained(spas: Any, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an epoch in fp16 on a simulated SPA."""
    out = tmp_path_factory.mktemp("trained")
    assert spas.run(train_fp16, "sdaa", shards, out, 1024.0, 4, world=1) == [None]
    return out / "last.pt"


def test_a_checkpoint_of_the_cards_holds_plain_tensors(trained: Path) -> None:
    saved = load_checkpoint(trained)
    tensors = [*saved.model.values(), *saved.optimizer.values()]
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
    report = export_onnx(trained, tmp_path / "model.onnx")
    assert (report.model, report.classes) == ("resnet18", 3)
    assert report.agreement is not None


# --- the stand-in itself ----------------------------------------------------------------------


def refusals() -> dict[str, str]:
    """What each forbidden thing raises, in a process with the simulated cards."""
    device = choose("sdaa")
    device.activate()
    import torch_sdaa.amp

    here, other = torch.ones(2, 3, device="sdaa:0"), torch.ones(2, 3, device="sdaa:1")
    attempts: dict[str, Callable[[], object]] = {
        "double": here.double,
        "double sum": lambda: here.sum(dtype=torch.float64),
        "double range": lambda: torch.arange(3.0, dtype=torch.float64, device="sdaa"),
        "double there": lambda: torch.ones(2, dtype=torch.float64).to("sdaa"),
        "cuda": here.cuda,
        "two devices": lambda: here + other,
        "host and device": lambda: here + torch.ones(2, 3),
        "no such device": lambda: torch.ones(1, device="sdaa:4"),
        "sparse": here.to_sparse,
        "bf16": lambda: torch_sdaa.amp.autocast(dtype=torch.bfloat16),
        "DataParallel": lambda: torch.nn.DataParallel(torch.nn.Linear(2, 2)),
    }
    return {name: raised(attempt) for name, attempt in attempts.items()}


def raised(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (RuntimeError, TypeError, AssertionError) as error:
        return str(error)
    return ""


def test_the_stand_in_refuses_what_the_cards_do(spas: Any) -> None:
    said = spas.run(refusals, world=1)[0]
    for name in ("double", "double sum", "double range", "double there"):
        assert "no float64" in said.pop(name)
    expected = {
        "cuda": "NVIDIA|CUDA",
        "two devices": "same device",
        "host and device": "same device",
        "no such device": "sdaa:4 is not there",
        "sparse": "no sparse tensors",
        "bf16": "float16, not torch.bfloat16",
        "DataParallel": "does not support DataParallel",
    }
    assert said.keys() == expected.keys()
    for name, message in expected.items():
        assert any(part in said[name] for part in message.split("|")), (name, said[name])


def same_as_the_cpu() -> dict[str, bool]:
    device = choose("sdaa")
    import torch_sdaa

    device.activate()
    torch.manual_seed(1)
    first = torch.randn(4, device="sdaa")
    device.manual_seed(1)
    host = torch.arange(24.0).view(2, 3, 4)
    there = host.to("sdaa:1")
    into = torch.empty(0, device="sdaa:1")
    torch.add(there, 1, out=into)
    view = there[1, :, 1:]
    view.mul_(2)
    changed = host.clone()
    changed[1, :, 1:].mul_(2)
    return {
        "random numbers follow the seed": bool(torch.equal(first, torch.randn(4, device="sdaa"))),
        "an out= argument grows": torch.equal(into.cpu(), host + 1),
        "a view is its base": torch.equal(there.cpu(), changed),
        "an index may be on the host": there[:, torch.tensor([0, 2])].shape == (2, 2, 4),
        "memory is counted": torch.sdaa.memory_allocated(1) >= 2 * 24 * 4,  # type: ignore[attr-defined]
        "the environment was set before the import": torch_sdaa.CONV_WEIGHT_CHWN,
    }


def test_the_stand_in_is_the_cpu_under_another_name(spas: Any) -> None:
    (found,) = spas.run(same_as_the_cpu, world=1)
    assert all(found.values()), found


def older_spellings() -> int:
    """The device as a torch_sdaa without torch.sdaa has it; what is current at the end."""
    device = choose("sdaa", 1)
    module = torch.sdaa  # type: ignore[attr-defined]
    del torch.sdaa  # type: ignore[attr-defined]
    try:
        device.activate()
        device.manual_seed(3)
        device.copied()()
        assert device.peak_memory() is None
    finally:
        torch.sdaa = module  # type: ignore[attr-defined]
    return int(module.current_device())


def test_an_older_torch_sdaa_will_do(spas: Any) -> None:
    assert spas.run(older_spellings, world=1) == [1]


def compile_with_options() -> tuple[str, float]:
    choose("sdaa")
    import torch_sdaa._inductor  # noqa: F401 - registers the backend

    def twice(tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 2

    there = torch.ones(3, device="sdaa")
    plain = torch.compile(twice, backend="teco_inductor")(there)
    torch._dynamo.reset()
    tuned = torch.compile(twice, backend="teco_inductor", options={"x": True})
    try:
        tuned(there)
    except Exception as error:  # noqa: BLE001 - which one is the compiler's affair
        return str(error), float(plain.sum())
    return "", float(plain.sum())


@pytest.mark.slow
def test_the_stand_in_compiles_without_options_alone(spas: Any) -> None:
    said, total = spas.run(compile_with_options, world=1)[0]
    assert "takes no options" in said
    assert total == 6


def reduce_badly() -> list[str]:
    with joined(choose("sdaa", place_from_environment()[2])) as world:
        number = torch.ones(2, device=world.device)
        assert sum_integers([1 << 40], world) == [2 << 40]
        attempts = [
            lambda: torch.distributed.all_reduce(number.long()),
            lambda: torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.AVG),
            lambda: torch.distributed.all_reduce(torch.ones(2)),
        ]
        return [raised(attempt) for attempt in attempts]


def test_the_stand_in_reduces_floats_of_the_device_alone(spas: Any) -> None:
    for said in spas.run(reduce_badly, world=2):
        assert "reduce torch.int64" in said[0]
        assert "AVG" in said[1]
        assert "not on cpu" in said[2]
