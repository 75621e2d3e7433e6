"""`train`: take a run from where it is to its end.

Stopping at any moment and starting the same command again gives what never stopping would
have given: the position in the order, momentum, scaler and batch norm are in the checkpoint,
order and augmentation follow from (seed, epoch, sample), and a run that was killed does its
unsaved steps again. With 1 and 2 processes on the CPU that holds bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from shards.cores import available_cores
from shards.dataset import Dataset
from shards.durable import atomic_write_bytes
from shards.errors import ToolError, UsageError
from shards.hashing import hash_file
from shards.order import steps_per_epoch
from shards.progress import Progress, Silent
from shards.stream import INEXACT
from shards.urls import expand
from training.checkpoint import Best, Checkpoint, current_versions
from training.config import TrainConfig, config_values, derived, warmup_note
from training.config_file import config_text
from training.device import choose
from training.distributed import (
    check_agreement,
    from_main,
    joined,
    place_from_environment,
    software,
)
from training.evaluate import Evaluation, check_labels
from training.loop import Loop, Outcome, out_of_patience
from training.reporting import Reporter
from training.resume import reconcile
from training.run_folder import RunFolder
from training.saving import Saver
from training.session import Record, Session
from training.start import Start, find_start, settle, with_best
from training.state import TrainState
from training.stopping import Signals, Stopped
from training.synthetic import NOTHING_LEARNT, SYNTHETIC
from training.train_set import Streamed, TrainSet, make_loader
from training.verdict import Agreement, end_if_any_received

Reason = Literal[Outcome, "already-finished"]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a call of `train` ended."""

    reason: Reason
    epoch: int  # epochs that are over
    step: int  # steps of the next one
    samples: int  # consumed since the run began
    best: Best | None
    evaluation: Evaluation | None  # the last one of this call
    last_checkpoint: Path
    best_checkpoint: Path | None
    log: Path
    seconds: float  # of this call
    is_main: bool  # whether this process is the one that reports


def train(
    config: TrainConfig,
    *,
    progress: Progress,
    on_record: Callable[[Record], None],
    signals: Signals | None = None,
) -> TrainResult:
    """Train as `config` says, in this process and those beside it (torchrun's environment).

    Rank 0 writes the run's folder, tells `progress` (a phase an epoch, in images) and gives
    each line of the log to `on_record`. `signals` listen already, where a command began before
    this call. Raises UsageError and ToolError, one sentence each, and Stopped where a signal or
    --max-time ended it, saved.
    """
    begun = time.monotonic()
    with contextlib.nullcontext(signals) if signals else Signals() as heard:
        result = _joined_run(config, heard, begun, progress, on_record)
    if result.reason in ("signal", "max-time"):
        why = "--max-time is over" if result.reason == "max-time" else "a signal asked for it"
        raise Stopped(
            f"stopped after epoch {result.epoch} and {result.step} steps, because {why}; "
            f"{result.last_checkpoint} is saved, and the same command goes on from there"
        )
    return result


def _joined_run(
    config: TrainConfig,
    signals: Signals,
    begun: float,
    progress: Progress,
    on_record: Callable[[Record], None],
) -> TrainResult:
    """`train`, together with the other processes."""
    device = choose(config.device, place_from_environment()[2])
    precision = device.precision(config.amp)
    with contextlib.ExitStack() as stack:
        if config.deterministic:
            device.be_deterministic()
            stack.callback(torch.use_deterministic_algorithms, mode=False)
        world = stack.enter_context(joined(device))
        end_if_any_received(signals, world)
        val_set = stack.enter_context(Dataset.open(config.shards / "val"))
        train_set = _open_train_set(config, val_set, stack)
        _check_splits(train_set, val_set)
        session = Session(
            config=config,
            device=device,
            precision=precision,
            world=world,
            train_set=train_set,
            val_set=val_set,
            folder=RunFolder(config.out),
            progress=progress if world.is_main else Silent(),
            on_record=on_record,
        )
        from_main(lambda: _lock(session.folder, stack), world)
        try:
            return _run(session, signals, begun)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise ToolError(
                f"{device.torch_device} ran out of memory at --batch-size {config.batch_size}, "
                f"--accumulate {config.accumulate} and --image-size {config.image_size}; try "
                f"--accumulate {2 * config.accumulate}, which trains the same in smaller parts, or "
                f"--batch-size {max(config.batch_size // 2, 1)}"
            ) from error


def _is_out_of_memory(error: Exception) -> bool:
    """On the CPU torch raises an ordinary RuntimeError, in the words of its c10/core."""
    ordinary = not isinstance(error, torch.OutOfMemoryError | MemoryError)
    return not ordinary or "DefaultCPUAllocator: " in str(error)


def _lock(folder: RunFolder, stack: contextlib.ExitStack) -> None:
    stack.enter_context(folder.locked())


def _check_splits(train_set: TrainSet, val_set: Dataset) -> None:
    check_labels(val_set)
    if isinstance(train_set, Streamed):
        return
    check_labels(train_set)
    if train_set.classes != val_set.classes:
        raise UsageError(
            f"{train_set.folder} and {val_set.folder} have different class lists "
            f"({len(train_set.classes)} and {len(val_set.classes)} classes); "
            "make both shard folders with one class list"
        )


def _run(session: Session, signals: Signals, begun: float) -> TrainResult:
    folder, world = session.folder, session.world
    start = from_main(lambda: find_start(session.config, folder), world)
    if start is not None:
        config = reconcile(
            session.config, start.path, start.checkpoint, session.data, session.train_set.classes
        )
        session = dataclasses.replace(session, config=config)
        best, notes = from_main(partial(settle, folder, start), world)
        start = with_best(start, best)
        for each in notes:
            session.progress.note(each)
    plan = _plan(session)
    check_agreement(_facts(session), world)
    if start is not None:
        reason = _nothing_left(session, start.checkpoint)
        if reason is not None:
            return _at_rest(session, start, reason, begun)
    return _trained(session, signals, start, plan, begun)


def _trained(
    session: Session,
    signals: Signals,
    start: Start | None,
    plan: dict[str, object],
    begun: float,
) -> TrainResult:
    """Train until something ends it, and see the last checkpoint on the disk."""
    from_main(lambda: _write_configuration(session), session.world)
    with contextlib.ExitStack() as stack:
        loop = _make_loop(session, signals, start, stack)
        state = loop.state
        _announce(session, state, loop.reporter, start, plan)
        outcome = _told(loop, begun)
        last_checkpoint = loop.saver.finish()
        seconds = time.monotonic() - begun
        loop.reporter.end(outcome, seconds)
        return TrainResult(
            reason=outcome,
            epoch=state.epoch,
            step=state.step,
            samples=state.samples,
            best=state.best,
            evaluation=loop.evaluation,
            last_checkpoint=last_checkpoint,
            best_checkpoint=session.folder.best if state.best else None,
            log=session.folder.log,
            seconds=seconds,
            is_main=session.world.is_main,
        )


def _told(loop: Loop, begun: float) -> Outcome:
    """Run the loop; the log's last line says why it failed, if it did."""
    try:
        return loop.run()
    except ToolError as error:
        loop.reporter.end("failed", time.monotonic() - begun, str(error))
        raise


def _write_configuration(session: Session) -> None:
    text = config_text(session.config)
    atomic_write_bytes(session.folder.configuration, text.encode())


def _make_loop(
    session: Session,
    signals: Signals,
    start: Start | None,
    stack: contextlib.ExitStack,
) -> Loop:
    """The loop with all that it works with, which `stack` closes again."""
    config, world = session.config, session.world
    loader = make_loader(session.train_set, config, world, pin_memory=session.device.pin_memory)
    stack.callback(loader.close)
    state = TrainState(session, loader.steps, None if start is None else start.checkpoint)
    reporter = Reporter(session, state)
    stack.callback(reporter.close)
    from_main(reporter.open, world)
    saver = Saver(
        session.folder,
        reporter.log,
        world,
        keep=config.keep,
        latest=None if start is None else start.path,
        best=None if start is None else start.checkpoint.best,
        note=session.progress.note,
    )
    stack.callback(saver.close)
    agreement = Agreement(
        world,
        signals,
        started=signals.began,
        max_minutes=config.max_minutes,
        save_minutes=config.save_minutes,
    )
    return Loop(
        session, loader=loader, state=state, reporter=reporter, saver=saver, agreement=agreement
    )


def _facts(session: Session) -> dict[str, object]:
    """What must be equal on all processes before the first step."""
    own = {"threads", "shards", "out", "profile"}  # may differ by machine
    values = {
        name: value for name, value in config_values(session.config).items() if name not in own
    }
    return {
        **software(),
        "train split": session.train_set.digest,
        "val split": session.val_set.digest,
        "configuration": values,
    }


def _nothing_left(session: Session, start: Checkpoint) -> Reason | None:
    """Why there is nothing to do after this checkpoint, if so."""
    config, position = session.config, start.position
    if position.epoch >= config.epochs:
        return "already-finished"
    steps = steps_per_epoch(
        session.train_samples, config.global_batch, drop_last=config.recipe.drop_last
    )
    done = position.epoch * steps + position.step
    evaluated = position.step < steps
    if config.max_steps is not None and done >= config.max_steps and evaluated:
        return "max-steps"
    if position.step == 0 and out_of_patience(position.epoch, start.best, config.patience):
        return "patience"
    return None


def _at_rest(session: Session, start: Start, reason: Reason, begun: float) -> TrainResult:
    position, best = start.checkpoint.position, start.checkpoint.best
    config, path = session.config, session.folder.path
    session.progress.note(
        {
            "max-steps": f"{path} has its --max-steps {config.max_steps} already",
            "patience": f"{path} is finished: its last {config.patience} epochs were no better",
        }.get(reason, f"{path} is finished: all its {position.epoch} epochs are trained")
    )
    return TrainResult(
        reason=reason,
        epoch=position.epoch,
        step=position.step,
        samples=position.samples,
        best=best,
        evaluation=None,
        last_checkpoint=start.path,
        best_checkpoint=session.folder.best if best else None,
        log=session.folder.log,
        seconds=time.monotonic() - begun,
        is_main=session.world.is_main,
    )


def _open_train_set(config: TrainConfig, val_set: Dataset, stack: contextlib.ExitStack) -> TrainSet:
    if config.stream is None or config.steps_per_epoch is None:
        return stack.enter_context(Dataset.open(config.shards / "train"))
    return Streamed(
        urls=config.stream,
        steps=config.steps_per_epoch,
        label_field=config.label_field,
        classes=val_set.classes,
        class_names=val_set.class_names,
    )


def _plan(session: Session) -> dict[str, object]:
    plan = derived(
        session.config,
        samples=session.train_samples,
        val_samples=len(session.val_set),
        classes=len(session.train_set.classes),
        world=session.world.size,
        train_shards=_count_shards(session.train_set),
        val_shards=_count_shards(session.val_set),
    )
    folder = session.folder
    return plan | {"checkpoints": str(folder.checkpoints), "log": str(folder.log)}


def _count_shards(train_set: TrainSet) -> int | None:
    if isinstance(train_set, Streamed):
        return None if train_set.urls == SYNTHETIC else len(expand(train_set.urls))
    return None if train_set.is_loose else len(np.unique(train_set.shards))


def _announce(
    session: Session,
    state: TrainState,
    reporter: Reporter,
    start: Start | None,
    plan: dict[str, object],
) -> None:
    """Say from where the run goes on, and log what it will do."""
    if isinstance(session.train_set, Streamed):
        made_up = session.train_set.urls == SYNTHETIC
        session.progress.note(NOTHING_LEARNT if made_up else INEXACT)
    if start is not None:
        session.progress.note(
            f"going on from {start.path}: {state.epoch} epochs and {state.step} steps are done"
        )
    reporter.emit(
        "start",
        {
            "samples": state.samples,
            "resumed_from": None if start is None else str(start.path),
            "device": str(session.device.torch_device),
            "device_name": session.device.name,
            "device_reason": session.device.reason,
            "host": socket.gethostname(),
            "cores": available_cores(),
            "precision": session.precision,
            "plan": plan,
            "config": config_values(session.config),
            "init_weights_sha256": _digest_of_weights(session) if start is None else None,
            "data": session.data,
            "versions": current_versions(),
        },
    )
    too_long = warmup_note(session.config)
    if too_long is not None:
        session.progress.note(too_long)


def _digest_of_weights(session: Session) -> str | None:
    """SHA-256 of the file that the run begins with; rank 0 alone reads it again."""
    path = session.config.init_weights
    return hash_file(path)[1] if path is not None and session.world.is_main else None
