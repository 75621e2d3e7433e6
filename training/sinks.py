"""Where the log's lines go beside log.jsonl: TensorBoard, and the vendor's own logger.

Both are other people's packages with names of their own for our numbers. The vendor's is used
wherever it is installed, because its acceptance reads that file; TensorBoard on request.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from training.extras import load_extra

_VENDOR = "tcap_dllogger"
_TENSORBOARD: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "step": {
        "train": (
            "loss", "lr", "images_per_second", "wait_share", "grad_norm", "loss_scale",
            "step_seconds", "peak_memory",
        )
    },
    "eval": {"val": ("top1", "top5", "loss")},
}  # fmt: skip


class Sink(Protocol):
    """Takes lines of the log."""

    def write(self, record: Mapping[str, Any], steps_done: int) -> None:
        """Take one line, written after so many steps of the run."""

    def close(self) -> None:
        """Make what was taken durable, as far as the package does."""


def open_sinks(out: Path, *, tensorboard: bool, steps_done: int) -> list[Sink]:
    """Those that are wanted and there, for a run in `out` that stands after `steps_done` steps.

    Raises ToolError where TensorBoard is asked for and not installed.
    """
    sinks: list[Sink] = []
    if tensorboard:
        sinks.append(TensorBoard(out / "tensorboard", steps_done))
    if importlib.util.find_spec(_VENDOR) is not None:
        sinks.append(VendorLog(out / f"{_VENDOR}.json"))
    return sinks


class TensorBoard:
    """Curves for `tensorboard --logdir`; what a run does again replaces what was there."""

    def __init__(self, folder: Path, steps_done: int) -> None:
        load_extra("tensorboard", needed_by="--tensorboard", extra="tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=steps_done + 1)

    def write(self, record: Mapping[str, Any], steps_done: int) -> None:
        """Add a line's numbers to their curves."""
        for place, names in _TENSORBOARD.get(record["kind"], {}).items():
            for name in names:
                if record.get(name) is not None:
                    self._writer.add_scalar(f"{place}/{name}", record[name], steps_done)
        if record["kind"] == "eval" and record["ema"] is not None:
            for name in ("top1", "top5", "loss"):
                self._writer.add_scalar(f"val_ema/{name}", record["ema"][name], steps_done)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class VendorLog:
    """tcap_dllogger, by the names that Tecorigin's trainers log by."""

    def __init__(self, path: Path) -> None:
        module = importlib.import_module(_VENDOR)
        self._level: Any = module.Verbosity.DEFAULT
        backend = module.JSONStreamBackend(module.Verbosity.VERBOSE, str(path), append=True)
        self._logger: Any = module.Logger([backend])

    def write(self, record: Mapping[str, Any], steps_done: int) -> None:  # noqa: ARG002
        """Log a line that the vendor has names for; its rates are those of one SPA."""
        data = _vendor_names(record)
        if data:
            self._logger.log(
                step=(record["epoch"], record["step"]),
                data={"rank": int(os.environ.get("LOCAL_RANK", "0")), **data},
                verbosity=self._level,
            )

    def close(self) -> None:
        """Write what is left."""
        self._logger.flush()


def _vendor_names(record: Mapping[str, Any]) -> dict[str, object]:
    """Our line in the vendor's words; empty where it has none."""
    if record["kind"] == "step":
        return {
            "train.loss": record["loss"],
            "train.ips": record["images_per_second_device"],
            "train.lr": record["lr"],
            "train.scale": record["loss_scale"],
        }
    if record["kind"] == "eval":
        return {
            "val.loss": record["loss"],
            "val.top1": record["top1"],
            "val.top5": record["top5"],
            "val.ips": record["images_per_second_device"],
        }
    if record["kind"] == "end" and record["best"] is not None:
        return {
            "summary.epoch": record["epoch"],
            "summary.metric": "val.top1",
            "summary.best_epoch": record["best"]["epoch"],
            "summary.best_metric": record["best"]["top1"],
        }
    return {}
