"""Hostile archives: every command refuses them by name, and nothing is written outside OUT.

Each kind of hostile member is put into each kind of archive, beside sound members, and given to
every command that reads it.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from prep.extraction.extract import extract, plan
from prep.extraction.extraction import Options
from prep.inspection.inspect import inspect
from prep.sources import collect, find_sources
from prep.verification.md5sums import NO_SUMS
from prep.verification.verify import verify
from shards.durable import RECORDS
from shards.errors import DamagedData, ToolError
from shards.manifest import MANIFEST_NAME
from shards.progress import Silent

Tree = dict[str, bytes]
BLOCK = 512
SOUND = b"<sound>" * 100


def member(name: str, data: bytes = SOUND, **fields: Any) -> bytes:
    """A member as tarfile writes it, with any fields; a `size` may be told apart from the data."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return header + data + bytes(-len(data) % BLOCK)


def tar(*members: bytes) -> bytes:
    return b"".join(members) + bytes(2 * BLOCK)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def tree(out: Path) -> Tree:
    """Every visible file's bytes by its path; symbolic links are not followed."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if not path.is_dir() and RECORDS not in path.parts
    }


# --- the corpus -------------------------------------------------------------------------------


class Spot(NamedTuple):
    """Where a hostile member stands: a sound name and sound data for it, and a place outside."""

    name: str
    data: bytes
    outside: Path

    def member(self, **fields: Any) -> bytes:
        return member(fields.pop("name", self.name), self.data, **fields)

    def renamed(self, change: Callable[[str], str]) -> str:
        """The name with its last part changed."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + change(name)


def sparse(**keys: str) -> Callable[[Spot], bytes]:
    headers = {f"GNU.sparse.{key}": value for key, value in keys.items()}
    return lambda spot: spot.member(pax_headers=headers)


def typed(kind: bytes, link: str = "") -> Callable[[Spot], bytes]:
    return lambda spot: member(spot.name, b"", type=kind, linkname=link)


HOSTILE: dict[str, tuple[Callable[[Spot], bytes], str]] = {
    "absolute": (lambda spot: spot.member(name=f"{spot.outside}/{spot.name}"), "outside"),
    "parent": (lambda spot: spot.member(name=f"../{spot.name}"), "outside"),
    "parents within": (lambda spot: spot.member(name=f"a/../../../{spot.name}"), "outside"),
    "a dot within": (lambda spot: spot.member(name=f"a/./{spot.name}"), "no plain name"),
    "symbolic link": (typed(tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
    "hard link": (typed(tarfile.LNKTYPE, "../../precious"), "hard link"),
    "character device": (typed(tarfile.CHRTYPE), "character device"),
    "block device": (typed(tarfile.BLKTYPE), "block device"),
    "FIFO": (typed(tarfile.FIFOTYPE), "FIFO"),
    "set-user-id": (lambda spot: spot.member(mode=0o4755), "set-user-id"),
    "set-group-id": (lambda spot: spot.member(mode=0o2755), "set-group-id"),
    "twice": (lambda spot: spot.member() + spot.member(), "twice"),
    "twice but for case": (
        lambda spot: spot.member() + spot.member(name=spot.renamed(str.swapcase)),
        "differ by case|no class archive|lies in no|is no ",
    ),
    "a line break": (lambda spot: spot.member(name=spot.renamed("a\n{}".format)), "control char"),
    "a NUL": (lambda spot: spot.member(pax_headers={"path": spot.name + "\0a"}), "control char"),
    "256 bytes": (lambda spot: spot.member(name=spot.renamed("{:A>256}".format)), "too long"),
    "64 kB": (lambda spot: spot.member(name="a/" * 32_000 + spot.name), "too long"),
    "not UTF-8": (lambda spot: spot.member(name=spot.renamed("\udcff{}".format)), "not UTF-8"),
    "a size too small by pax": (
        lambda spot: spot.member(pax_headers={"size": "5"}),
        "bytes by its header and 5 by its extended header",
    ),
    "a size too large by pax": (
        lambda spot: spot.member(pax_headers={"size": "2000"}),
        "bytes by its header and 2000 by its extended header",
    ),
    "a size past the end": (
        lambda spot: member(spot.name, spot.data, size=1 << 32),
        "truncated|claims",
    ),
    "a size past the end by pax": (
        lambda spot: member(spot.name, b"", pax_headers={"size": "999999999999"}),
        "truncated|claims",
    ),
    "sparse, old GNU": (typed(tarfile.GNUTYPE_SPARSE), "a sparse file"),
    "sparse, pax 0.1": (sparse(size="9" * 9, map="0,512,4096,512"), "sparse"),
    "sparse, pax 1.0": (sparse(major="1", minor="0", realsize="9" * 9), "sparse"),
    "a tar": (lambda spot: member(spot.renamed(lambda _: "n00000009.tar"), tar()), ".tar'"),
    "a tar of images": (
        lambda spot: member(spot.renamed("more-{}.tar".format), tar(member("a.jpg"))),
        ".tar'",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Container:
    """An archive around a hostile member: how it is made, and what of it is sound."""

    name: str  # of the member, were it sound
    wrap: Callable[[bytes], bytes]
    sound: Tree
    data: bytes = SOUND
    inside: str = ""  # the inner tar that messages name
    indexed: bool = True  # shard and inspect read it
    takes_tars: bool = False  # tars are members like others, or left out


def nested(hostile: bytes) -> bytes:
    first = tar(member("n00000001_1.JPEG"))
    return tar(
        member("n00000001.tar", first),
        member("n00000002.tar", tar(member("n00000002_1.JPEG"), hostile)),
    )


CONTAINERS = {
    "class tars": Container(
        name="n00000002.tar",
        data=tar(member("n00000002_1.JPEG")),
        wrap=lambda hostile: tar(
            member("n00000001.tar", tar(member("n00000001_1.JPEG"))),
            hostile,
            member("n00000003.tar", tar(member("n00000003_1.JPEG"))),
        ),
        sound={f"train/n0000000{n}/n0000000{n}_1.JPEG": SOUND for n in (1, 2, 3, 9)},
        takes_tars=True,
    ),
    "inner tar": Container(
        name="n00000002_2.JPEG",
        wrap=nested,
        sound={f"train/n0000000{n}/n0000000{n}_{i}.JPEG": SOUND for n in (1, 2) for i in (1, 2)},
        inside=":n00000002.tar",
    ),
    "inner tar, compressed": Container(
        name="n00000002_2.JPEG",
        wrap=lambda hostile: bz2.compress(nested(hostile)),
        sound={f"train/n0000000{n}/n0000000{n}_{i}.JPEG": SOUND for n in (1, 2) for i in (1, 2)},
        inside=":n00000002.tar",
        indexed=False,
    ),
    "flat": Container(
        name="ILSVRC2012_val_00000002.JPEG",
        wrap=lambda hostile: tar(
            member("ILSVRC2012_val_00000001.JPEG"), hostile, member("ILSVRC2012_val_00000003.JPEG")
        ),
        sound={f"val/cat/ILSVRC2012_val_0000000{n}.JPEG": SOUND for n in (1, 2, 3)},
    ),
    "class folders": Container(
        name="train/cat/b.jpg",
        wrap=lambda hostile: tar(member("train/cat/a.jpg"), hostile, member("train/cat/c.jpg")),
        sound={f"train/cat/{n}.jpg": SOUND for n in "abc"},
        takes_tars=True,
    ),
    "compressed": Container(
        name="n00000001_2.JPEG",
        wrap=lambda hostile: gzip.compress(
            tar(member("n00000001_1.JPEG"), hostile, member("n00000001_3.JPEG"))
        ),
        sound={f"train/n00000001/n00000001_{n}.JPEG": SOUND for n in (1, 2, 3)},
        indexed=False,
    ),
    "boxes": Container(
        name="n00000001/n00000001_2.xml",
        wrap=lambda hostile: lzma.compress(
            tar(member("n00000001/n00000001_1.xml"), hostile, member("n00000001/n00000001_3.xml")),
            preset=0,
        ),
        sound={f"annotations/train/n00000001/n00000001_{n}.xml": SOUND for n in (1, 2, 3)},
        indexed=False,
        takes_tars=True,
    ),
    "devkit": Container(
        name="ILSVRC2012_devkit_t12/b.txt",
        wrap=lambda hostile: gzip.compress(
            tar(
                member("ILSVRC2012_devkit_t12/a.txt"),
                hostile,
                member("ILSVRC2012_devkit_t12/c.txt"),
            )
        ),
        sound={f"ILSVRC2012_devkit_t12/{n}.txt": SOUND for n in "abc"},
        indexed=False,
        takes_tars=True,
    ),
}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"ILSVRC2012_val_{n:08d}.JPEG cat\n" for n in range(1, 4)))
    return path


def refuses_to_extract(path: Path, out: Path, options: Options) -> str:
    with pytest.raises(DamagedData) as raised:
        extract([path], out, options, workers=1, progress=Silent())
    return str(raised.value)


def refuses_to_plan(path: Path, out: Path, options: Options) -> str:
    with pytest.raises(DamagedData) as raised:
        plan([path], out, options, Silent())
    return str(raised.value)


def index(path: Path, options: Options) -> None:
    sources = find_sources([path], None)
    collect(sources, labels=options.labels, classes=None, progress=Silent())


def refuses_to_index(path: Path, _: Path, options: Options) -> str:
    with pytest.raises(DamagedData) as raised:
        index(path, options)
    return str(raised.value)


def refuses_to_inspect(path: Path, _: Path, options: Options) -> str:
    with pytest.raises(DamagedData) as raised:
        list(inspect([path], labels=options.labels, progress=Silent()))
    return str(raised.value)


def finds_damage(path: Path, _: Path, options: Options) -> str:
    found = verify(
        [path], sums=NO_SUMS, labels=options.labels, decode=False, workers=1, progress=Silent()
    )
    return found.findings[0]


COMMANDS = {
    "extract --dry-run": refuses_to_plan,
    "extract": refuses_to_extract,
    "shard": refuses_to_index,
    "inspect": refuses_to_inspect,
    "verify": finds_damage,
}


@pytest.mark.parametrize(
    ("place", "case"),
    [
        (place, case)
        for place, container in CONTAINERS.items()
        for case in HOSTILE
        if not (container.takes_tars and case.startswith("a tar"))
    ],
)
@pytest.mark.usefixtures("deadline")
def test_every_command_refuses_it_by_name_and_writes_nothing_elsewhere(
    place: str, case: str, labels: Path, tmp_path: Path
) -> None:
    container = CONTAINERS[place]
    make, reason = HOSTILE[case]
    hostile = make(Spot(container.name, container.data, tmp_path / "elsewhere"))
    path = tmp_path / "archive.tar"
    path.write_bytes(container.wrap(hostile))
    deep = tmp_path / "deep" / "er"
    deep.mkdir(parents=True)
    (deep / "precious").write_text("precious")
    before, descriptors = tree(tmp_path), open_files()
    for command, refuse in COMMANDS.items():
        if not container.indexed and command in {"shard", "inspect"}:
            continue
        said = refuse(path, deep / "out", Options(labels=labels))
        assert said.startswith(f"{path}{container.inside}"), command
        assert re.search(reason, said), (command, said)
        assert len(said) < 2000, command
        assert said.isprintable(), command
    assert tree(deep / "out").items() <= container.sound.items()
    after = {name: data for name, data in tree(tmp_path).items() if "/out/" not in name}
    assert after == before
    assert open_files() == descriptors


# --- names that meet on the disk --------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("train/cat/a.jpg", "train/Cat/b.jpg"),
        ("train/cat/a.jpg", "data/train/cat/a.jpg"),
        ("val/cat/a.jpg", "validation/cat/a.jpg"),
        ("train/n01440764/n01440764_1.JPEG", "train/n01440764_1.JPEG"),
        ("n01440764_1.JPEG", "n01440764_1_n01440764.JPEG"),
    ],
    ids=" and ".join,
)
def test_two_members_for_one_place_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(tar(*(member(name, name.encode()) for name in names)))
    said = refuses_to_extract(path, tmp_path / "out", Options())
    assert re.search(r"twice|differs by case alone", said)
    assert len(tree(tmp_path / "out")) == 1


def test_flat_does_not_put_the_images_of_class_folders_upon_each_other(tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(tar(member("val/cat/1.jpg", b"cat"), member("val/dog/1.jpg", b"dog")))
    extract([path], tmp_path / "out", Options(flat=True), workers=1, progress=Silent())
    assert tree(tmp_path / "out") == {"val/cat/1.jpg": b"cat", "val/dog/1.jpg": b"dog"}


@pytest.mark.parametrize("name", [f"{RECORDS}/extract.jsonl", "train/n01440764/a.JPEG", "a.txt"])
def test_a_devkit_writes_into_its_own_folder_alone(name: str, tmp_path: Path) -> None:
    path = tmp_path / "devkit.tar.gz"
    path.write_bytes(gzip.compress(tar(member("ILSVRC2012_devkit_t12/a.txt"), member(name))))
    assert name in refuses_to_extract(path, tmp_path / "out", Options())
    assert tree(tmp_path / "out") == {"ILSVRC2012_devkit_t12/a.txt": SOUND}
    assert "devkit" not in (tmp_path / "out" / RECORDS / "lock").read_text()


# --- bombs ------------------------------------------------------------------------------------

MIB = 1 << 20
ROOM = 128 * MIB  # what a command may take of memory for them
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
}


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail where more than `ROOM` is allocated at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < ROOM
    finally:
        tracemalloc.stop()


def endless(name: str) -> list[bytes]:
    """10 GiB of members of 16 MiB, as the streams of which a compressed file is put together."""
    return [member(name.format(n), b"", size=16 * MIB) for n in range(640)]


BOMBS = {
    "images": (endless("n00000001_{}.JPEG"), "256 times its size"),
    "boxes": (endless("n00000001/n00000001_{}.xml"), "256 times its size"),
    "devkit": (endless("ILSVRC2012_devkit_t12/{}.txt"), "256 times its size"),
    "class folders": (endless("train/cat/{}.jpg"), "256 times its size"),
    "class tars": (endless("n{:08d}.tar"), "256 times its size|zeros at byte"),
    "what is no image": (endless("{}.txt"), "256 times its size"),
    "one image": (
        [member("n00000001_1.JPEG", b"", size=10 << 30), *([b""] * 639)],
        "claims 10737418240 bytes|256 times its size",
    ),
    "zeros": ([b""] * 640, "zeros at byte"),
}


def write_bomb(path: Path, bomb: str, compressor: str) -> Path:
    compress, heads = COMPRESSORS[compressor], BOMBS[bomb][0]
    zeros = compress(bytes(16 * MIB))
    path.write_bytes(b"".join((compress(head) if head else b"") + zeros for head in heads))
    assert path.stat().st_size < 11 * MIB
    return path


@pytest.mark.usefixtures("deadline")
def test_a_bomb_does_not_go_off_in_shards(build: Callable[..., Any], tmp_path: Path) -> None:
    path = write_bomb(tmp_path / "bomb.tar.gz", "images", "gzip")
    with little_memory(), pytest.raises(DamagedData, match=f"{path} inflates to more than 256"):
        build(path, out=tmp_path / "out")
    assert sum(each.stat().st_size for each in (tmp_path / "out").rglob("*")) < 256 * MIB


@pytest.mark.parametrize(
    ("bomb", "compressor"),
    [*((bomb, "gzip") for bomb in BOMBS), ("images", "bzip2"), ("images", "xz")],
)
@pytest.mark.usefixtures("deadline")
def test_a_bomb_does_not_go_off(bomb: str, compressor: str, tmp_path: Path) -> None:
    reason = BOMBS[bomb][1]
    path = write_bomb(tmp_path / "bomb.tar.gz", bomb, compressor)
    for refuse in (refuses_to_plan, refuses_to_extract, finds_damage):
        with little_memory():
            said = refuse(path, tmp_path / "out", Options())
        assert said.startswith(str(path))
        assert re.search(reason, said)
    assert sum(map(len, tree(tmp_path / "out").values())) < 16 * path.stat().st_size + 256 * MIB


@pytest.mark.parametrize(
    "name", ["train/cat/a.jpg", "n00000001_1.JPEG", "ILSVRC2012_val_00000001.JPEG", "n00000001.tar"]
)
@pytest.mark.usefixtures("deadline")
def test_an_image_of_gigabytes_takes_no_memory(name: str, labels: Path, tmp_path: Path) -> None:
    """The archive is a hole of 4 GiB, so that its member's size is no lie."""
    path = tmp_path / "archive.tar"
    head = member(name, b"", size=3 << 30)
    if name.endswith(".tar"):
        head += member("n00000001_1.JPEG", b"", size=2 << 30)
    path.write_bytes(head)
    os.truncate(path, 4 << 30)
    for refuse in (refuses_to_extract, refuses_to_index, refuses_to_inspect, finds_damage):
        with little_memory():
            said = refuse(path, tmp_path / "out", Options(labels=labels))
        assert re.search(r"claims|an image may have|never written|zeros at byte", said)
    assert tree(tmp_path / "out") == {}


# --- archives that change while they are read -------------------------------------------------


class Meanwhile(Silent):
    """Does something once, when a phase of the work has begun."""

    def __init__(self, phase: str, act: Callable[[], object]) -> None:
        self._phase = phase
        self._act = act
        self._armed = False

    def start(self, what: str, *_: object) -> None:
        self._armed = what.startswith(self._phase)

    def advance(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            self._act()


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(member("n00000009.tar"))


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace(path: Path) -> None:
    """By another, as a download under a temporary name does."""
    other = path.with_name("other")
    other.write_bytes(b"other")
    other.replace(path)


def overwrite(path: Path) -> None:
    """In place, its size the same: as rsync --inplace does."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size // 4))


CHANGES = {"grows": grow, "shrinks": shrink, "is replaced": replace, "is overwritten": overwrite}


@pytest.fixture(params=["class tars", "flat", "compressed"])
def changing(request: Any, tmp_path: Path) -> tuple[Path, Tree]:
    """An archive of 2 x 20 images of 450 kB, last written an hour ago; and its tree."""
    noise = os.urandom(450_000)
    images = {
        f"n0000000{label}_{n}.JPEG": noise[n * 1000 :] + bytes([label]) * n * 1000
        for label in (1, 2)
        for n in range(20)
    }
    members = [member(name, data) for name, data in images.items()]
    path = tmp_path / "archive.tar"
    if request.param == "class tars":
        halves = {f"n0000000{n}.tar": tar(*members[20 * n - 20 : 20 * n]) for n in (1, 2)}
        path.write_bytes(tar(*(member(name, data) for name, data in halves.items())))
    else:
        data = tar(*members)
        path.write_bytes(gzip.compress(data, 0) if request.param == "compressed" else data)
    hour_ago = path.stat().st_mtime_ns - 3600 * 10**9
    os.utime(path, ns=(hour_ago, hour_ago))
    return path, {f"train/{name[:9]}/{name}": data for name, data in images.items()}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("phase", ["extracting", "reading back"])
@pytest.mark.usefixtures("deadline")
def test_an_archive_that_changes_meanwhile_is_not_taken_for_whole(
    phase: str, change: str, changing: tuple[Path, Tree], tmp_path: Path
) -> None:
    path, expected = changing
    before, status = path.read_bytes(), path.stat()
    options = Options(md5=True, remove_archives=True)
    meanwhile = Meanwhile(phase, lambda: CHANGES[change](path))
    with pytest.raises(ToolError, match=f"{path} changed while it was read; wait until"):
        extract([path], tmp_path / "out", options, workers=1, progress=meanwhile)
    assert path.exists()

    path.unlink()
    path.write_bytes(before)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    (again,) = extract([path], tmp_path / "out", options, workers=2, progress=Silent())
    digest = hashlib.md5(before, usedforsecurity=False).hexdigest()
    assert (again.md5, again.removed) == (digest, True)
    assert tree(tmp_path / "out") == expected


def test_an_archive_that_goes_meanwhile_is_named(
    changing: tuple[Path, Tree], tmp_path: Path
) -> None:
    path, _ = changing
    meanwhile = Meanwhile("extracting", path.unlink)
    with pytest.raises(FileNotFoundError) as raised:
        extract([path], tmp_path / "out", Options(), workers=1, progress=meanwhile)
    assert raised.value.filename == str(path)


@pytest.mark.parametrize("change", CHANGES)
def test_shards_of_an_archive_that_changes_meanwhile_are_right_or_none(
    change: str,
    jpeg: Callable[[int], bytes],
    write_tar: Callable[..., Path],
    build: Callable[..., Any],
    sums: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    images = {f"n00000001_{n}.JPEG": jpeg(n) for n in range(100)}
    path = write_tar(tmp_path / "archive.tar", images)
    build(path, out=tmp_path / "expected")
    meanwhile = Meanwhile("writing", lambda: CHANGES[change](path))
    try:
        build(path, out=tmp_path / "out", workers=1, progress=meanwhile)
    except ToolError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert not list((tmp_path / "out").rglob(MANIFEST_NAME))
    else:
        assert sums(tmp_path / "out") == sums(tmp_path / "expected")
