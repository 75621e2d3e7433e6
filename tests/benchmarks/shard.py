"""Images per second from a nested training archive to finished shards, start-up and sync counted.

Ours as a command; `cp` with `sha256sum` beside it, which only copies and checks; and the usual
way: tar, the nested loop of tars, then webdataset's ShardWriter.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from _bench import Bench, parse, pictures

WRITER = """
import sys
from pathlib import Path
import webdataset
root, out = Path(sys.argv[1]), sys.argv[2]
classes = {path.name: label for label, path in enumerate(sorted(root.iterdir()))}
with webdataset.ShardWriter(out + "/s-%06d.tar", maxcount=1000, verbose=0) as writer:
    for path in sorted(root.glob("*/*.JPEG")):
        label = classes[path.parent.name]
        writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": label})
"""
USUAL = """
set -e
mkdir -p "$2/images" "$2/shards"
tar -xf "$1" -C "$2/images"
cd "$2/images"
for inner in *.tar; do mkdir "${inner%.tar}"; tar -xf "$inner" -C "${inner%.tar}"; rm "$inner"; done
"""


def write_archive(images: list[bytes], path: Path, classes: int = 10) -> Path:
    """A tar of one tar a class, as ILSVRC2012's."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as outer:
        for label in range(classes):
            wnid, file = f"n{label:08d}", io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as inner:
                for number, data in enumerate(images[label::classes]):
                    add(inner, f"{wnid}_{number}.JPEG", data)
            add(outer, f"{wnid}.tar", file.getvalue())
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def main() -> None:
    options = parse(__doc__)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        archive = write_archive(pictures(options, scratch), scratch / "train.tar")
        out = scratch / "out"

        def timed(*commands: list[str]) -> float:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            started = time.perf_counter()
            for command in commands:
                subprocess.run(
                    command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            return options.count / (time.perf_counter() - started)

        ours = str(Path(sys.executable).with_name("imagenet-prep"))
        copy = 'cp "$1" "$2/copy.tar" & sha256sum "$1" & wait'
        bench = Bench(unit="images/s", rounds=options.rounds)
        bench.measure(
            {
                "ours": lambda: timed([ours, "shard", str(archive), "--out", str(out)]),
                "cp, sha256sum beside": lambda: timed(
                    ["sh", "-c", copy, "sh", str(archive), str(out)]
                ),
                "tar, nested loop, webdataset ShardWriter": lambda: timed(
                    ["sh", "-c", USUAL, "sh", str(archive), str(out)],
                    [sys.executable, "-c", WRITER, str(out / "images"), str(out / "shards")],
                ),
            }
        )
        bench.report("ours", options)


if __name__ == "__main__":
    main()
