"""--jpeg restart: the same picture with restart markers on a grid, by libjpeg-turbo's jpegtran.

Lossless: the same DCT coefficients and metadata, with optimised Huffman tables. Every result is
decoded beside its original and taken only where all pixels are equal. 250 pictures of ImageNet
take 1.1 % more bytes with it (5 % more than that without the optimised tables), and 9.5 ms of a
core each: 6 in jpegtran, 3 in the comparison.

The result is a function of the image and of libjpeg-turbo's version: a fault of the machine
raises and never decides what is stored.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
import simplejpeg

from shards.errors import DamagedData, ToolError
from shards.image import Format, ImageInfo, read_info
from shards.jpeg_markers import SOS, Segment, mcu_width, restart_interval, segments

# Pixels: 4 MCUs of the usual 4:2:0, 8 of 4:4:4 and of grey. Over random crops of 250 pictures of
# ImageNet, 24 to 48 pixels (4 MCUs of whatever width) are cut and decoded as fast within 3 %, but
# take 2 % more bytes and twice the time under the interpreter lock; whole rows take 24 % longer.
SEGMENT_WIDTH = 64
_TIMEOUT = 300.0  # seconds for one image; the largest that is read takes 15
# Of markers in one file. Progressive files have about ten scans and metadata comes in parts of
# 64 kB; a small file with thousands of scans would take hours to decode.
_MOST_SEGMENTS = 500
# jpegtran's exit codes for an image that it cannot read or warns of, and what libjpeg says when
# it is the machine that failed.
_IMAGE_FAULTS = (1, 2)
_MACHINE_FAULTS = ("Insufficient memory", "write error")
_INSTALL = "apt-get install libjpeg-turbo-progs"


def segment_mcus(mcus: int, width: int) -> int:
    """MCUs in a restart segment, for rows of so many MCUs of so many pixels.

    A divisor of the row, so that no segment crosses into the next one: that whose pixels are
    nearest to `SEGMENT_WIDTH` by ratio. No two are equally near.
    """
    return min(
        (count for count in range(1, mcus + 1) if not mcus % count),
        key=lambda count: max(count * width / SEGMENT_WIDTH, SEGMENT_WIDTH / (count * width)),
    )


class _Kept(Exception):
    """Why an image cannot be transcoded and stays as it is."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """Lossless transcoding with libjpeg-turbo's jpegtran.

    Grey and colour JPEGs alone: progressive ones become sequential, so that they can be cut
    too; CMYK and PNG stay as they are, and so does what decodes with a warning. Application
    and comment segments are the original's to the byte and in its order; what follows the end
    of the image is left out.
    """

    jpegtran: Path
    version: str  # of libjpeg-turbo: with another one the Huffman tables may differ
    timeout: float = _TIMEOUT  # seconds for one image

    def describe(self) -> dict[str, object]:
        """What decides the bytes: the grid, the tool, its version."""
        return {
            "mode": "restart",
            "segment_width": SEGMENT_WIDTH,
            "encoder": f"libjpeg-turbo {self.version} jpegtran",
        }

    def encode(self, data: memoryview, info: ImageInfo) -> bytes | None:
        """The same image with a restart grid, or None where it cannot have one."""
        if info.format is Format.PNG or info.components not in (1, 3):
            return None
        try:
            return self.transcode(data, info)
        except (_Kept, DamagedData):
            return None

    def transcode(self, data: memoryview, info: ImageInfo) -> bytes:
        """As `encode`; raises _Kept or DamagedData, with the reason, where it gives None."""
        found = list(itertools.islice(segments(data), _MOST_SEGMENTS + 1))
        if len(found) > _MOST_SEGMENTS:
            raise _Kept(f"it has more than {_MOST_SEGMENTS} marker segments")
        pixels = _decode(data)
        frame = next(segment for segment in found if segment.is_frame)
        width = mcu_width(data, frame)
        interval = segment_mcus(-(-info.width // width), width)
        plain = memoryview(self._run(data, interval))
        header = list(itertools.takewhile(_before_scan, segments(plain)))
        first = next((each.start for each in header if not each.is_metadata), len(plain))
        metadata = [data[each.start : each.end] for each in found if each.is_metadata]
        result = b"".join([plain[:2], *metadata, plain[first:]])
        if restart_interval(plain, header) != interval:
            raise _Kept(f"it did not get restart markers every {interval} MCUs")
        if read_info(result) != info._replace(format=Format.JPEG):
            raise _Kept("it did not come out as a sequential JPEG of its size")
        if not np.array_equal(pixels, _decode(result)):
            raise _Kept("its pixels came out different")
        return result

    def _run(self, data: memoryview, interval: int) -> bytes:
        command = [str(self.jpegtran), "-copy", "none", "-optimize", "-restart", f"{interval}B"]
        try:
            with _unnamed_file() as source, _unnamed_file() as result:
                source.write(data)
                source.flush()
                source.seek(0)
                code, message = self._wait(command, source, result)
                size = os.fstat(result.fileno()).st_size
                if not code:
                    return os.pread(result.fileno(), size, 0)
        except OSError as error:
            raise ToolError(f"{self.jpegtran} could not be run: {error}") from None
        fault = message or ("it said nothing" if code > 0 else f"signal {-code}")
        if code not in _IMAGE_FAULTS or any(each in message for each in _MACHINE_FAULTS):
            raise ToolError(
                f"{self.jpegtran} failed with exit code {code} on an image of {len(data)} bytes "
                f"({fault}); if memory is short, use fewer --workers"
            )
        raise _Kept(f"jpegtran ended with exit code {code} ({fault})")

    def _wait(self, command: list[str], source: BinaryIO, result: BinaryIO) -> tuple[int, str]:
        """Run to the end; the exit code (negative: a signal) and what was said on stderr.

        In a session of its own: Ctrl-C in the terminal is for us to act on.
        """
        with subprocess.Popen(
            command,
            stdin=source,
            stdout=result,
            stderr=subprocess.PIPE,
            close_fds=False,  # what Python opens is not inherited; closing all takes longer
            start_new_session=True,
        ) as process:
            try:
                _, message = process.communicate(timeout=self.timeout)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise ToolError(
                        f"{self.jpegtran} did not finish an image within {self.timeout:g} s"
                    ) from None
                raise
        return process.returncode, message.decode(errors="replace").strip()


def _before_scan(segment: Segment) -> bool:
    return segment.marker != SOS


def _decode(data: bytes | memoryview) -> npt.NDArray[np.uint8]:
    """Pixels as the loader sees them; a mere warning is enough to leave the image alone."""
    try:
        return cast("npt.NDArray[np.uint8]", simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError as error:
        raise _Kept(f"it cannot be decoded ({error})") from None


def _unnamed_file() -> BinaryIO:
    """A file without a name: cheaper than a pipe to and from a process that reads it whole."""
    if hasattr(os, "memfd_create"):  # missing from Pythons that are built for old systems
        return os.fdopen(os.memfd_create("image"), "w+b")
    return cast("BinaryIO", tempfile.TemporaryFile())


def find_jpegtran() -> Restart:
    """libjpeg-turbo's jpegtran on PATH, known by its version and tried on one picture."""
    place = shutil.which("jpegtran")
    if place is None:
        raise ToolError(
            f"--jpeg restart needs jpegtran, which is not on PATH; install it ({_INSTALL})"
        )
    version = _version(place)
    restart = Restart(jpegtran=Path(place).absolute(), version=version)
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(32, 0).repeat(3, 2)
    data = memoryview(simplejpeg.encode_jpeg(ramp, colorsubsampling="420"))
    try:
        restart.transcode(data, read_info(data))
    except (_Kept, DamagedData) as error:
        raise ToolError(
            f"{place} does not transcode even a small, whole picture: {error}; "
            f"install it anew ({_INSTALL})"
        ) from None
    return restart


def _version(place: str) -> str:
    try:
        done = subprocess.run(
            [place, "-version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"{place} does not tell its version: {error}") from None
    text = done.stdout.decode(errors="replace")
    found = re.search(r"^libjpeg-turbo version (\S+)", text, re.MULTILINE)
    if found is None:
        said = text.strip().splitlines()[:1]
        raise ToolError(
            f"{place} is not libjpeg-turbo's jpegtran ({''.join(said) or 'it says nothing'}); "
            f"put that first on PATH ({_INSTALL})"
        )
    return found[1]
