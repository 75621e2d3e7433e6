"""The accelerators of this machine: SDAA cards and CUDA GPUs, found without importing torch.

Cards are known by their device files; name, memory and health by what the vendors' own tools
print (teco-smi, nvidia-smi), which run without a shell and are given up after a few seconds.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from prep.doctor.sdaa import SECONDS, TOOLKIT, sdaa, together
from prep.doctor.software import torch_build
from shards.asking import ask
from shards.finding import Finding, counted, note, ok, problem

_CUDA_CARD = re.compile(r"nvidia\d+")
_CUDA_ROW = re.compile(r"(.+), (\d+ MiB|\[.+\])")  # the memory is [N/A] where it is the host's


def cards(
    dev: Path = Path("/dev"), *, toolkit: Path = TOOLKIT, seconds: float = SECONDS
) -> list[Finding]:
    """SDAA cards and CUDA GPUs, or a note that there are none; `dev` has the device files.

    `toolkit` is where TecoToolKit is installed, `seconds` how long a vendor's tool is waited for.
    """
    found = [*sdaa(dev, toolkit=toolkit, seconds=seconds), *_cuda(dev, seconds)]
    return found or [
        note(
            "devices",
            "no SDAA card and no CUDA GPU: training runs on the CPU",
            "preparing needs none; containers are given cards by docker run --device "
            "/dev/tcaicard0, GPUs by --gpus all",
        )
    ]


def _cuda(dev: Path, seconds: float) -> list[Finding]:
    answer = _nvidia_smi(seconds)
    if answer is None:
        count = sum(_CUDA_CARD.fullmatch(path.name) is not None for path in dev.iterdir())
        remedy = "it comes with the driver; a container has it with --gpus all"
        found = f"{counted(count, 'GPU')}; no nvidia-smi to tell name and memory"
        return [note("CUDA", found, remedy)] if count else []
    rows = [match for line in answer.splitlines() if (match := _CUDA_ROW.fullmatch(line))]
    if not rows:
        return [
            problem(
                "CUDA",
                f"nvidia-smi lists no GPU: {(answer.strip().splitlines() or ['no output'])[0]}",
                "reboot if the driver was updated; give a container its GPUs (--gpus all)",
            )
        ]
    found = together(f"{row[1]} with {row[2].replace('[N/A]', 'shared memory')}" for row in rows)
    if torch_build() == "the CPU":
        remedy = "install a torch built for CUDA (https://pytorch.org/get-started/locally)"
        return [problem("CUDA", f"{found}; this torch is built for the CPU", remedy)]
    return [ok("CUDA", found)]


def _nvidia_smi(seconds: float) -> str | None:
    """What it prints, errors too, or why it does not answer; None where it is not there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        answer = ask([tool, "--query-gpu=name,memory.total", "--format=csv,noheader"], seconds)
    except OSError as error:
        return f"{tool}: {error.strerror}"
    return f"no answer within {seconds:.0f} s" if answer.code is None else answer.text
