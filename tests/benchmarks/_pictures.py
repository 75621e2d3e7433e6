"""The same pictures in every form that a loader reads, each made when it is first asked for."""

from __future__ import annotations

import argparse
import dataclasses
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from _bench import Bench, write_folders
from _commands import OURS, timed
from _measured import Spec

from shards.cores import available_cores

SIZE = 224
SHARDS = 64  # of the pictures: enough that block shuffle differs from a full one
REDUCED = ("--jpeg", "reencode", "--short-side", 256)
WRITERS = Path(__file__).with_name("_peers.py")


@dataclass(frozen=True)
class Setup:
    """What the sections work with; made when first asked for."""

    options: argparse.Namespace
    images: list[bytes]
    folder: Path

    @property
    def batch(self) -> int:
        return 32 if self.options.quick else 256

    def bench(self, title: str, unit: str = "images/s", rounds: int = 0) -> Bench:
        return Bench(unit=unit, rounds=rounds or self.options.rounds, title=title)

    def spec(self, data: Path, **changes: object) -> Spec:
        spec = Spec(
            data=str(data),
            batches=len(self.images) // self.batch,
            batch=self.batch,
            size=SIZE,
            workers=available_cores(),
            asked=0.0,
        )
        return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]

    @cached_property
    def tree(self) -> Path:
        """The pictures as class folders."""
        return write_folders(self.images, self.folder / "tree")

    def shards(self, name: str, *options: object) -> Path:
        """Shards of the pictures, the folder of their training split."""
        out = self.folder / name
        if not out.exists():
            a_shard = max(1, len(self.images) // SHARDS)
            timed(
                *(OURS, "shard", self.tree, "--split", "train", "--out", out),
                *("--samples-per-shard", a_shard, *options),
                hurry=True,
            )
        return out / "train"

    @property
    def ordinary(self) -> Path:
        """Shards of the pictures as they are."""
        return self.shards("ordinary")

    @property
    def restart(self) -> Path:
        """With restart markers, the same pixels."""
        return self.shards("restart", "--jpeg", "restart")

    @property
    def reduced(self) -> Path:
        """Short side 256."""
        return self.shards("reduced", *REDUCED)

    @property
    def reduced_restart(self) -> Path:
        """Short side 256, with restart markers."""
        return self.shards("reduced-restart", *REDUCED, "--restart")

    @cached_property
    def reduced_tree(self) -> Path:
        """The reduced pictures as class folders, the same bytes as in the shards."""
        root = self.folder / "reduced-tree"
        for shard in sorted(self.reduced.glob("*.tar")):
            with tarfile.open(shard) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    if content is not None and member.name.endswith(".jpg"):
                        stem = Path(member.name).stem
                        place = root / stem.split("_")[0] / f"{stem}.JPEG"
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(content.read())
        return root

    def others_format(self, writer: str, tree: Path) -> Path:
        """A tree in MosaicML's or litdata's own format."""
        out = self.folder / f"{writer}-{tree.name}"
        if not out.exists():
            out.mkdir()
            timed(self.options.peers, WRITERS, writer, tree, out, hurry=True)
        return next(path for path in out.iterdir() if path.is_dir())

    def data_for(self, peer: str, tree: Path, shards: Path) -> Path:
        """What a peer reads, of the pictures in a tree and in shards."""
        if peer in ("streaming", "litdata"):
            return self.others_format(peer, tree)
        return shards if peer == "webdataset" else tree
