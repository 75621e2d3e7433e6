"""JPEGs that tests share: made from numbers, and with restart markers where they are wanted."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
import simplejpeg

SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")


def made(width: int, height: int, subsampling: str = "420", quality: int = 90) -> bytes:
    """A JPEG with structure and noise, the same for the same numbers."""
    generator = np.random.default_rng(width * 65_537 + height)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([x * 3 + y, x + y * 2, (x * y) // 7], axis=2)
    pixels = ((waves + generator.integers(0, 40, (height, width, 3))) % 256).astype(np.uint8)
    if subsampling == "Gray":
        pixels = np.ascontiguousarray(pixels[..., :1])
        return bytes(simplejpeg.encode_jpeg(pixels, quality, "GRAY", "Gray"))
    return bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", subsampling))


def find_jpegtran() -> str:
    """The tool's path; the test is skipped where it is not installed."""
    place = shutil.which("jpegtran")
    if place is None:
        pytest.skip("jpegtran is not installed (apt-get install libjpeg-turbo-progs)")
    return place


def jpegtran(data: bytes, *options: str) -> bytes:
    """What jpegtran makes of a JPEG."""
    command = [find_jpegtran(), *options]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout
