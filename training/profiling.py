"""--profile: a trace of a few steps by torch.profiler, for chrome://tracing or Perfetto."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import profiler

from shards.errors import ToolError
from training.device import Device

_WAIT, _WARMUP, _ACTIVE = 5, 2, 3  # steps that pass by, that warm up, that are recorded


@contextlib.contextmanager
def profiled(
    folder: Path | None, device: Device, note: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Record steps into `folder`/trace.json; what is given is to be called after each step.

    Without a folder nothing is recorded. `note` is told where the trace lies.
    """
    if folder is None:
        yield _nothing
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(
            f"{folder} cannot be made ({error.strerror}); give --profile another folder"
        ) from error
    path = folder / "trace.json"
    written: list[Path] = []

    def write(recorded: profiler.profile) -> None:
        recorded.export_chrome_trace(str(path))
        written.append(path)
        note(f"{path}: a trace of {_ACTIVE} steps, to be opened by chrome://tracing or Perfetto")

    activities = {profiler.ProfilerActivity.CPU, device.profiler_activity}
    with profiler.profile(
        activities=[each for each in activities if each is not None],
        schedule=profiler.schedule(wait=_WAIT, warmup=_WARMUP, active=_ACTIVE, repeat=1),
        on_trace_ready=write,
    ) as recorder:
        yield recorder.step
    if not written:
        note(f"--profile recorded nothing: it takes {_WAIT + _WARMUP + _ACTIVE} steps")


def _nothing() -> None:
    pass
