"""A process of tests/training/conftest.py's pool: runs functions of test files as a rank."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import time
from typing import Any, BinaryIO

import torch.distributed as dist


def main(orders: BinaryIO, answers: BinaryIO) -> None:
    functions: dict[str, dict[str, Any]] = {}
    while True:
        try:
            rank, path, name, arguments, world, port = pickle.load(orders)  # noqa: S301
        except EOFError:
            return
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        if path not in functions:
            spec = importlib.util.spec_from_file_location(f"job_{len(functions)}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            functions[path] = vars(module)
        try:
            answer = functions[path][name](*arguments)
        except Exception as error:  # noqa: BLE001 - the test judges it
            answer = (type(error).__name__, str(error))
        if dist.is_initialized():  # after a failure; a process of a run would have ended
            time.sleep(0.1)  # see training/distributed.py: let gloo's threads come to rest
            dist.destroy_process_group()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    # Whatever prints goes to stderr: stdout is the answers' pipe.
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    main(sys.stdin.buffer, channel)
