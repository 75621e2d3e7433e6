"""What is left of a split's manifest, index and sums, and which of them proves another.

Each of the three can be told from the other two: the manifest names the index's digest, the sums
name both, and the index repeats what the manifest says. A SHA-256 that is found in the text of a
damaged file is a proof all the same, since no damage makes one up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from shards.agreement import index_findings, inner_findings
from shards.anatomy import Anatomy
from shards.comparison import compare
from shards.durable import RECORDS
from shards.errors import DamagedData, ToolError
from shards.hashing import hash_file
from shards.index import INDEX_NAME, Index
from shards.manifest import MANIFEST_NAME, SUMS_NAME, File, Manifest, OtherVersion
from shards.rebuild import extra_samples, extras_of, manifest_of, readers_of, shard_files

# Where a run that makes shards, or an index of tars as they lie, keeps what it has done.
BEGUN: Final = (f"{RECORDS}/shards", f"{RECORDS}/index")

_SUM = re.compile(rb"([0-9a-f]{64})  ([A-Za-z0-9_][A-Za-z0-9_.-]*)")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The three files of a folder, as far as each can be read.

    `manifest` is there if its own digest fits, `index` if it can be read and does not contradict
    itself; `manifest_fault` and `index_fault` say why they are not. `index_file` is what lies in
    the index's place, whatever it is. `sums` are the lines of SHA256SUMS that can be read.
    """

    folder: Path
    manifest: Manifest | None
    manifest_fault: str
    index: Index | None
    index_fault: str
    index_file: File | None
    sums: Mapping[str, str]
    remains: bytes  # of manifest and sums

    @classmethod
    def gather(cls, folder: Path) -> Evidence:
        """Read what is there.

        Raises ToolError where there are no shards, or unfinished ones, OtherVersion for a
        manifest that is whole and not for this tool to judge.
        """
        manifest, manifest_fault = _read_manifest(folder)
        index, index_fault, index_file = _read_index(folder / INDEX_NAME)
        texts = [_read(folder / name) for name in (MANIFEST_NAME, SUMS_NAME)]
        lines = filter(None, map(_SUM.fullmatch, texts[1].split(b"\n")))
        return cls(
            folder=folder,
            manifest=manifest,
            manifest_fault=manifest_fault,
            index=index,
            index_fault=index_fault,
            index_file=index_file,
            sums={line[2].decode(): line[1].decode() for line in lines},
            remains=b"\n".join(texts),
        )

    @cached_property
    def believed(self) -> Manifest | None:
        """The manifest as it was written: proven by the sums, else the one that is there.

        None where that is damaged, contradicts the very index that it vouches for, or is of
        another build than index and shards.
        """
        proof = self.sums.get(MANIFEST_NAME)
        manifest = self.manifest
        if proof is not None and (manifest is None or manifest.sha256 != proof):
            restored = self._restored()
            is_proven = restored is not None and restored.sha256 == proof
            if is_proven and not self._are_shards_of(manifest, restored):
                return restored
        if manifest is None or self.contradictions(manifest) or self._is_a_stranger(manifest):
            return None
        return manifest

    def _are_shards_of(self, manifest: Manifest | None, other: Manifest | None) -> bool:
        """Whether the first shard that tells two manifests apart is that of the former."""
        told = {} if manifest is None else {each.name: each.sha256 for each in manifest.shards}
        for shard in () if other is None else other.shards:
            path = self.folder / shard.name
            if path.is_file() and told.get(shard.name, shard.sha256) != shard.sha256:
                _, sha256 = hash_file(path)
                if sha256 in (shard.sha256, told[shard.name]):
                    return sha256 != shard.sha256
        return False

    def _is_a_stranger(self, manifest: Manifest) -> bool:
        """Whether the manifest has another index than lies there, which has a shard that is whole.

        A damaged index is not whole in itself, or no shard is as it says.
        """
        provisional = self.provisional
        if provisional is None or provisional.index.sha256 == manifest.index.sha256:
            return False
        index = self.index
        assert index is not None, "there is no other manifest without an index"
        told = {shard.name: shard.sha256 for shard in manifest.shards}
        for number, shard in enumerate(provisional.shards):
            path = self.folder / shard.name
            if path.is_file() and path.stat().st_size == shard.bytes:
                anatomy = Anatomy.of(index, number, shard.bytes)
                found = compare(path, anatomy, deep=True, step=lambda _: None)
                if anatomy.framed and not found.damage:
                    return found.sha256 != told.get(shard.name)
        return False

    def _restored(self) -> Manifest | None:
        """The manifest that index and sums give."""
        if self.index is None or self.index_file is None:
            return None
        shards = shard_files(self.index, self.sums, self._sizes)
        extras = extras_of(self.index, shards, self.folder, self.sums)
        return manifest_of(self.index, self.index_file, shards, extras)

    def contradictions(self, manifest: Manifest) -> list[str]:
        """Where the manifest says other things than the index whose SHA-256 it has."""
        index, file = self.index, self.index_file
        if index is None or file is None or file.sha256 != manifest.index.sha256:
            return []
        findings = index_findings(index, manifest)
        if findings:
            return findings
        told = {each.name: each.sha256 for each in (*manifest.shards, *manifest.extras)}
        sizes = {each.name: each.bytes for each in manifest.shards}
        shards = shard_files(index, told, sizes)
        samples = {each.name: each.samples for each in manifest.extras}
        if (tuple(shards), file) != (manifest.shards, manifest.index) or (
            samples != extra_samples(shards, readers_of(samples))
        ):
            return ["it gives files other bytes or samples than the manifest"]
        if index.content_digest() != manifest.content:
            return ["it holds other content than the manifest says"]
        return []

    @property
    def provisional(self) -> Manifest | None:
        """What the index alone says: a manifest without any SHA-256 of the shards."""
        if self.index is None or self.index_file is None:
            return None
        shards = shard_files(self.index, {}, self._sizes)
        return manifest_of(self.index, self.index_file, shards, [])

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Bytes of the files that are there."""
        return {path.name: path.stat().st_size for path in self.folder.iterdir() if path.is_file()}

    @property
    def vouched(self) -> bool:
        """Whether manifest or sums, in whatever state, have the SHA-256 of the index."""
        return self.index_file is not None and self.has(self.index_file.sha256)

    def has(self, sha256: str) -> bool:
        """Whether manifest or sums, in whatever state, have this SHA-256."""
        return sha256.encode() in self.remains


def _read_manifest(folder: Path) -> tuple[Manifest | None, str]:
    try:
        return Manifest.read(folder), ""
    except OtherVersion:
        raise
    except DamagedData as error:
        return None, str(error)
    except ToolError as error:
        if not _is_split(folder):
            raise
        return None, str(error)


def is_begun(folder: Path) -> bool:
    """Whether a folder has the records of a run that has still to write shards or an index."""
    return any((folder / sign).is_dir() for sign in BEGUN)


def _is_split(folder: Path) -> bool:
    """Whether a folder without a manifest holds shards that were finished once."""
    signs = ("*.tar", INDEX_NAME, SUMS_NAME)
    return not is_begun(folder) and any(any(folder.glob(sign)) for sign in signs)


def _read_index(path: Path) -> tuple[Index | None, str, File | None]:
    if not path.is_file():
        return None, f"{path} is missing", None
    size, sha256 = hash_file(path)
    try:
        index = Index.read(path)
    except DamagedData as error:
        return None, str(error), File(name=path.name, bytes=size, sha256=sha256, samples=0)
    file = File(name=path.name, bytes=size, sha256=sha256, samples=len(index))
    findings = inner_findings(index)
    return (None, f"{path}: {findings[0]}", file) if findings else (index, "", file)


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
