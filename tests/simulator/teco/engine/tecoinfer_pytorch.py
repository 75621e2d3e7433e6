"""The vendor's TecoInferEngine by its calls, with onnxruntime where the cards would be.

As the real one it takes a batch for all replicas, each of which computes the compiled batch; as
it, too, it wants the input's own type and says what it does on stdout.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime


class TecoInferEngine:
    """One that was made; `made` has all of them."""

    made: ClassVar[list[TecoInferEngine]] = []

    def __init__(
        self,
        ckpt: str,
        batch_size: int,
        input_size: list[list[int]],
        input_name: str,
        target: str,
        dtype: str,
        pass_path: Path,
    ) -> None:
        assert target == "sdaa"
        assert Path(pass_path).is_file()
        sys.stdout.write(f"shape_dict={{{input_name!r}: {input_size[0]}}}\n")
        self.session = onnxruntime.InferenceSession(ckpt, providers=["CPUExecutionProvider"])
        (self.input,) = self.session.get_inputs()
        assert self.input.name == input_name
        self.batch_size, self.input_size, self.dtype = batch_size, input_size, dtype
        self.released = False
        self.made.append(self)

    def __call__(self, pictures: Any) -> Any:
        assert not self.released
        assert pictures.dtype == np.dtype(self.dtype)
        assert pictures.flags["C_CONTIGUOUS"]
        assert pictures.shape == (self.batch_size, *self.input_size[0][1:])
        sys.stdout.write("tvm_run\n")
        each = self.input_size[0][0]
        parts = [pictures[at : at + each] for at in range(0, len(pictures), each)]
        return np.concatenate(
            [self.session.run(None, {self.input.name: part})[0] for part in parts]
        )

    def release(self) -> None:
        self.released = True
