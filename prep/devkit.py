"""What the development kit (ILSVRC2012_devkit_t12.tar.gz) says: synsets and validation labels.

Two members are read, `data/meta.mat` and `data/ILSVRC2012_validation_ground_truth.txt`, both
straight from the archive. Its labels are ILSVRC2012_IDs, not class indices: `validation_wnids`
is the safe way out. The archive is hostile until checked: never more than `MAX_UNPACKED` bytes
are inflated (the real archive has 2.5 MB packed), each member and variable has a bound of its
own, and every fault is one DamagedData that names the file and the member.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from prep.matfile import Record, read_struct_array
from shards.errors import DamagedData

META: Final = "data/meta.mat"
GROUND_TRUTH: Final = "data/ILSVRC2012_validation_ground_truth.txt"

MAX_PACKED: Final = 32 * 2**20
MAX_UNPACKED: Final = 64 * 2**20
MAX_MEMBERS: Final = 1_000
MAX_MEMBER: Final = 8 * 2**20
MAX_VARIABLES: Final = 16 * 2**20

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class Synset:
    """One entry of meta.mat; the 1000 classes are those without children, IDs 1 to 1000."""

    ilsvrc_id: int
    wnid: str
    words: str
    gloss: str
    num_children: int
    num_train_images: int


@dataclass(frozen=True, kw_only=True)
class Devkit:
    """`ground_truth`: int16 ILSVRC2012_ID of each validation image, in order of image number."""

    synsets: tuple[Synset, ...]
    ground_truth: npt.NDArray[np.int16]

    def validation_wnids(self) -> tuple[str, ...]:
        """The wnid of each validation image, in order of image number."""
        wnids = {synset.ilsvrc_id: synset.wnid for synset in self.synsets}
        return tuple(wnids[int(ilsvrc_id)] for ilsvrc_id in self.ground_truth)


def read_devkit(path: Path) -> Devkit:
    """Read and check a devkit archive. Raises DamagedData, or OSError where `path` has no file."""
    members = _read_members(path, (META, GROUND_TRUTH))
    with _naming(path, META):
        records = read_struct_array(members[META], "synsets", max_bytes=MAX_VARIABLES)
        synsets = _synsets(records)
    with _naming(path, GROUND_TRUTH):
        ground_truth = _ground_truth(members[GROUND_TRUTH], synsets)
    return Devkit(synsets=synsets, ground_truth=ground_truth)


@contextmanager
def _naming(path: Path, member: str) -> Iterator[None]:
    """Say in which file and member the reason of a DamagedData lies, and the remedy."""
    try:
        yield
    except DamagedData as error:
        raise DamagedData(f"{path}: {member}: {error}; download the devkit again") from None


class _Bounded(io.RawIOBase):
    """The inflated bytes of a gzip file up to `MAX_UNPACKED`, then DamagedData."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file
        self._left = MAX_UNPACKED

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left + 1 if size < 0 else min(size, self._left + 1)
        data = self._file.read(wanted)
        self._left -= len(data)
        if self._left < 0:
            raise DamagedData(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
        return data


def _read_members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The wanted members by their names, with the faults of gzip and tar made DamagedData."""
    with _naming(path, "the archive"):
        if path.stat().st_size > MAX_PACKED:
            raise DamagedData(f"it is larger than {MAX_PACKED:,} bytes, so it is no devkit")
        try:
            with gzip.open(path) as packed:
                found = _scan(_Bounded(packed), names)
        except EOFError:
            raise DamagedData("it is truncated") from None
        except (gzip.BadGzipFile, zlib.error):
            raise DamagedData("it is not a sound gzip file") from None
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise DamagedData(f"there is no sound tar in its gzip ({error})") from None
        for name in names:
            if name not in found:
                raise DamagedData(f"it has no member {name}")
    return found


def _scan(unpacked: _Bounded, names: Sequence[str]) -> dict[str, bytes]:
    """One pass over the tar; members are told by their last two path components."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=unpacked, mode="r|") as archive:
        for number, member in enumerate(archive):
            if number == MAX_MEMBERS:
                raise DamagedData(f"it has more than {MAX_MEMBERS:,} members")
            name = "/".join(member.name.split("/")[-2:])
            if name in names:
                if name in found:
                    raise DamagedData(f"it holds {name} twice")
                found[name] = _read_member(archive, member)
    while unpacked.read(2**16):  # to the end, where gzip keeps its checksum
        pass
    return found


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isreg():
        raise DamagedData(f"{member.name} is not a regular file")
    if not 0 <= member.size <= MAX_MEMBER:
        raise DamagedData(f"{member.name} claims {member.size:,} bytes, over {MAX_MEMBER:,}")
    file = archive.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise DamagedData(f"{member.name} is truncated")
    return data


def _synsets(records: Sequence[Record]) -> tuple[Synset, ...]:
    synsets = tuple(
        Synset(
            ilsvrc_id=_integer(record, "ILSVRC2012_ID"),
            wnid=_text(record, "WNID"),
            words=_text(record, "words"),
            gloss=_text(record, "gloss"),
            num_children=_integer(record, "num_children"),
            num_train_images=_integer(record, "num_train_images"),
        )
        for record in records
    )
    for synset in synsets:
        if not _WNID.fullmatch(synset.wnid):
            raise DamagedData(f"{synset.wnid!r} is not a wnid")
    if len({synset.wnid for synset in synsets}) != len(synsets):
        raise DamagedData("a wnid occurs twice")
    if sorted(synset.ilsvrc_id for synset in synsets) != list(range(1, len(synsets) + 1)):
        raise DamagedData(f"the ILSVRC2012_IDs are not 1 to {len(synsets)}, each once")
    return synsets


def _integer(record: Record, field: str) -> int:
    value = record.get(field)
    if not isinstance(value, np.ndarray) or value.shape != (1,):
        raise DamagedData(f"field {field} is not one number")
    number = float(value[0])
    if not number.is_integer() or not 0 <= number < 2**31:
        raise DamagedData(f"field {field} is {number}, not a count")
    return int(number)


def _text(record: Record, field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise DamagedData(f"field {field} is not a text")
    return value


def _ground_truth(data: bytes, synsets: Sequence[Synset]) -> npt.NDArray[np.int16]:
    """One ID a line; each that of a class, which is a synset without children."""
    classes = {synset.ilsvrc_id for synset in synsets if synset.num_children == 0}
    labels: list[int] = []
    for number, line in enumerate(data.splitlines(), start=1):
        ilsvrc_id = int(line) if re.fullmatch(rb"\d{1,4}", line.strip()) else 0
        if ilsvrc_id not in classes:
            raise DamagedData(
                f"line {number} is {line[:20].decode('ascii', 'replace')!r}, "
                "not the ILSVRC2012_ID of a class in meta.mat"
            )
        labels.append(ilsvrc_id)
    return np.array(labels, dtype=np.int16)
