"""The answers of an evaluation as a file: JSON lines, a header and then a sample each.

`{"kind": "header", "classes": [...], "class_names": [...], "model": ..., "split": ..., ...}`, then
`{"key": ..., "label": class index, "top": [[class index, probability], ...]}` in the order of keys,
the best five, the best one first.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from shards.durable import atomic_file
from training.results.evaluation import Result, Results

_DIGITS = 6  # of a probability: float32 has no more to say


def write_predictions(path: Path, results: Results, result: Result) -> None:
    """Write the answers of one model, whole or not at all."""
    assert result.answers is not None
    header = {
        "kind": "header",
        "classes": results.classes,
        "class_names": results.class_names,
        "model": result.saved.model,
        "split": results.split,
        "path": str(result.saved.path),
        "engine": result.engine,
        "samples": len(results.keys),
        "folder": str(results.folder.absolute()),
    }
    answers = result.answers
    with atomic_file(path) as file:
        file.write(_line(header))
        for key, label, classes, chances in zip(
            results.keys,
            results.labels.tolist(),
            answers.classes.tolist(),
            answers.probabilities.tolist(),
            strict=True,
        ):
            top = [
                [index, None if math.isnan(chance) else round(chance, _DIGITS)]
                for index, chance in zip(classes, chances, strict=True)
            ]
            file.write(_line({"key": key, "label": label, "top": top}))


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
