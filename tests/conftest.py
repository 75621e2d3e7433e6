"""What the tests share: small archives, shards made of them, fixed pictures, real processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from simulator import build as simulator
from trees import tar

from prep.build import BuildOptions, build_shards
from prep.sample.data import SampleData, write_sample_data
from shards.progress import Silent
from shards.writer import WriteOptions

PICTURES = Path(__file__).parent / "pictures"
SECONDS = 240  # until a process that hangs fails its test; a busy machine takes its time
LOOP_SECONDS = 120  # the same for a loop in the test's own process


# --- pictures ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def picture() -> Callable[[str], bytes]:
    """The bytes of a file under tests/pictures: they never change with the installed encoder."""
    return lambda name: (PICTURES / name).read_bytes()


@pytest.fixture(scope="session")
def jpeg(picture: Callable[[str], bytes]) -> Callable[[int], bytes]:
    """The colour picture with a comment, so that each number has its own bytes and length."""
    plain = picture("colour.jpg")

    def numbered(number: int) -> bytes:
        text = b"%d" % number + b"." * (number * 7 % 64)
        return plain[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + plain[2:]

    return numbered


# --- archives, folders, shards ----------------------------------------------------------------


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> SampleData:
    """The three archives of ILSVRC2012 with 3 classes, 51 training and 15 validation images."""
    return write_sample_data(
        tmp_path_factory.mktemp("archives"),
        classes=3,
        train_per_class=17,
        val_per_class=5,
        progress=Silent(),
    )


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """`build_shards` of whatever the paths are, with the usual options."""

    def run_build(*paths: Path, out: Path, **options: Any) -> Any:
        workers, progress = options.pop("workers", 2), options.pop("progress", Silent())
        split = options.pop("split", None)
        write = WriteOptions(**options.pop("write", {}))
        chosen = BuildOptions(**({"samples_per_shard": 16} | options), write=write)
        return build_shards(paths, split, out, chosen, workers=workers, progress=progress)

    return run_build


@pytest.fixture(scope="session")
def shards(
    archives: SampleData, build: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Shards of `archives`: train/ with four and val/ with one. Not to be written to."""
    out = tmp_path_factory.mktemp("shards")
    build(archives.train.parent, out=out)
    return out


@pytest.fixture
def shards_copy(shards: Path, tmp_path: Path) -> Path:
    """A copy of `shards` that a test may damage."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


@pytest.fixture(scope="session")
def write_tar() -> Callable[..., Path]:
    """Write a tar of (name, bytes) pairs as tarfile does it, in the order given."""

    def write(path: Path, members: Mapping[str, bytes], layout: int = tarfile.USTAR_FORMAT) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tar(members, layout))
        return path

    return write


@pytest.fixture(scope="session")
def write_train_tar(write_tar: Callable[..., Path]) -> Callable[..., Path]:
    """Write a tar of tars, as the training archive is, from {wnid: {name: bytes}}."""

    def write(path: Path, classes: Mapping[str, Mapping[str, bytes]]) -> Path:
        inner = {f"{wnid}.tar": tar(images, tarfile.GNU_FORMAT) for wnid, images in classes.items()}
        return write_tar(path, inner)

    return write


@pytest.fixture(scope="session")
def write_folders() -> Callable[..., Path]:
    """Write class folders from {class: {name: bytes}}."""

    def write(root: Path, classes: Mapping[str, Mapping[str, bytes]]) -> Path:
        for name, images in classes.items():
            (root / name).mkdir(parents=True)
            for image, data in images.items():
                (root / name / image).write_bytes(data)
        return root

    return write


@pytest.fixture(scope="session")
def sums() -> Callable[[Path], dict[str, str]]:
    """SHA-256 of every file beneath a folder by its relative path; hidden records left out."""

    def take(root: Path) -> dict[str, str]:
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file() and ".imagenet-prep" not in path.relative_to(root).parts
        }

    return take


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with imagenet-sample-250.tar and cifar10-jpeg.tar.xz: pictures of others."""
    place = os.environ.get("IMAGENET_RESNET_TEST_DATA")
    if not place:
        pytest.skip("IMAGENET_RESNET_TEST_DATA does not name a folder with real pictures")
    return Path(place)


# --- devices ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def simulated_sdaa(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The environment in which `import torch_sdaa` finds four simulated SPAs, for subprocesses."""
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("simulator") if cache else tmp_path_factory.mktemp("simulator")
    try:
        return simulator.environment(folder)
    except simulator.NoCompilerError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def dev(tmp_path: Path) -> Callable[..., Path]:
    """A folder with device files."""

    def make(*names: str) -> Path:
        folder = tmp_path / "dev"
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        return folder

    return make


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put an executable on PATH, where there is nothing else, that prints a text and ends."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place))

    def make(
        name: str, text: str, code: int = 0, *, stream: str = "stdout", hangs: bool = False
    ) -> Path:
        script = f"import signal, sys; sys.{stream}.write({text!r}); "
        script += "signal.pause()" if hangs else f"sys.exit({code})"
        path = place / name
        path.write_text(f"#!{sys.executable}\n{script}\n")
        path.chmod(0o755)
        return path

    return make


# --- processes --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def script() -> Callable[[str], str]:
    """The path of an installed console script of this Python."""

    def find(name: str) -> str:
        path = Path(sys.executable).with_name(name)
        if not path.exists():
            pytest.fail(f"{path} is missing: install the package into this Python first")
        return str(path)

    return find


@pytest.fixture(scope="session")
def run(script: Callable[[str], str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a console script to its end."""

    def call(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script(name), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    return call


@pytest.fixture
def start(script: Callable[[str], str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a console script; what still runs at the test's end is killed."""
    with contextlib.ExitStack() as stack:

        def call(name: str, *arguments: object) -> subprocess.Popen[str]:
            # A process started in the background may ignore Ctrl-C, and children inherit that.
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            process = subprocess.Popen(
                [script(name), *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            signal.signal(signal.SIGINT, before)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield call


@pytest.fixture(scope="session")
def wait_until() -> Callable[[subprocess.Popen[str], Callable[[], bool]], None]:
    """Wait for a sign of a running process; fails when it ends or takes too long."""

    def wait(process: subprocess.Popen[str], sign: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not sign():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.002)
                pytest.fail(f"it ended too early: {process.communicate()}")
            assert time.monotonic() < end

    return wait


@pytest.fixture
def deadline() -> Iterator[None]:
    """Make an endless loop in this process a failure instead of a hang."""

    def give_up(*_: object) -> None:
        pytest.fail(f"it did not end within {LOOP_SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LOOP_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class SmallDisk:
    """A file system in memory that is soon full."""

    def __init__(self, path: Path, options: str) -> None:
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", options, "tmpfs")

    def _mount(self, *arguments: str) -> None:
        command = ["mount", *arguments, str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def resize(self, options: str) -> None:
        self._mount("-o", f"remount,{options}")

    def remove(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], SmallDisk]]:
    """Mount a tmpfs with the given options; needs root."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root and mount(8)")
    with contextlib.ExitStack() as stack:

        def make(options: str) -> SmallDisk:
            disk = SmallDisk(tmp_path / "disk", options)
            stack.callback(disk.remove)
            return disk

        yield make
