"""The compiler's name; importing it registers it. It compiles nothing.

SDAA_SIMULATOR_COMPILER names a built-in exception, or InductorError, that it then raises, as the
real one is known to do.
"""

import builtins
import os
from collections.abc import Callable
from typing import Any

import torch


def _compile(graph: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Callable[..., Any]:
    if options:
        raise RuntimeError(f"teco_inductor takes no options or mode: {sorted(options)}")
    if any(isinstance(each, torch.SymInt) for each in inputs):
        raise RuntimeError("teco_inductor takes no dynamic shapes")
    failure = os.environ.get("SDAA_SIMULATOR_COMPILER")
    if failure == "InductorError":
        from torch._inductor.exc import InductorError

        raise InductorError(RuntimeError("FusedSchedulerNode has no _sizes"), None)
    if failure:
        raise getattr(builtins, failure)("scheduling_ctor")
    return graph.forward


torch._dynamo.register_backend(_compile, name="teco_inductor")
