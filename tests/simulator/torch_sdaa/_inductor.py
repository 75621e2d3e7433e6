"""The compiler's name; importing it registers it. It compiles nothing."""

from collections.abc import Callable
from typing import Any

import torch


def _compile(graph: torch.fx.GraphModule, _inputs: list[Any], **options: Any) -> Callable[..., Any]:
    if options:
        raise RuntimeError(f"teco_inductor takes no options or mode: {sorted(options)}")
    return graph.forward


torch._dynamo.register_backend(_compile, name="teco_inductor")
