"""The plan of shards that exist, made again from what they were made of, so they can be mended.

Everything but the images and their labels is in the manifest: classes, seed, shard size, encoder.
What comes of it has the manifest's fingerprint or is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prep.build import BuildOptions, plan_shards
from prep.inflated import readable_in_place
from shards.errors import DamagedData, ToolError
from shards.manifest import Manifest
from shards.plan import Plan, canonical_json
from shards.progress import Progress
from shards.repair import Material
from shards.transcode import recall_encoder
from shards.writer import WriteOptions


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What shards were made of: archives or folders, and labels where those were given.

    `out` is the folder of the splits, where compressed archives are inflated for a while.
    """

    paths: Sequence[Path]
    labels: Path | None
    out: Path
    workers: int
    progress: Progress

    @contextlib.contextmanager
    def material(self, manifest: Manifest) -> Iterator[Material]:
        """The plan of a split and its encoder; what the plan needs is there within the block.

        Raises ToolError where this is not what the split was made of, or the encoder is not
        that of its plan.
        """
        try:
            options = _options(manifest, self.labels)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedData(f"the plan of the split {manifest.split!r} is damaged") from error
        with readable_in_place(
            self.paths, manifest.split, self.out, workers=self.workers, progress=self.progress
        ) as sources:
            plans = plan_shards(sources, options, self.progress)
            plan = next(each for each in plans if each.options.split == manifest.split)
            _refuse_other(plan, manifest, self.paths)
            yield Material(plan=plan, encoder=options.write.encoder)


def _options(manifest: Manifest, labels: Path | None) -> BuildOptions:
    """The options that a split was built with."""
    told = manifest.plan
    given: dict[str, Any] = {
        name: told[name]
        for name in ("per_class", "samples_per_shard", "shard_size")
        if told.get(name) is not None
    }
    encoder = recall_encoder(told["jpeg"])
    return BuildOptions(
        labels=labels,
        classes=manifest.classes,
        seed=told["seed"],
        write=WriteOptions(encoder=encoder),
        **given,
    )


def _refuse_other(plan: Plan, manifest: Manifest, paths: Sequence[Path]) -> None:
    """Raise ToolError, with what differs, where a plan is not the manifest's."""
    if plan.fingerprint == manifest.plan.get("fingerprint"):
        return
    described = plan.describe()
    told = {name: value for name, value in manifest.plan.items() if name != "fingerprint"}
    if described.get("samples") != told.get("samples"):
        why = f"it has {described['samples']} images instead of {told.get('samples')}"
    elif canonical_json(described) != canonical_json(told):
        names = described.keys() | told.keys()
        differing = sorted(each for each in names if described.get(each) != told.get(each))
        why = f"{', '.join(differing)} would be others"
    else:
        why = "names, labels or sizes of its images are others (do they need --labels?)"
    raise ToolError(
        f"{', '.join(map(str, paths))} is not what the split {manifest.split!r} was made of: {why}"
    )
