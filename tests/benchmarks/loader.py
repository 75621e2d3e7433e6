"""Our loader against others', against the machine, at ImageNet's number of samples, cold.

Work is the same for all: RandomResizedCrop 224 (antialiased bilinear) and mirroring to uint8
batches of 256, as many threads or workers as there are cores. Every figure is of a process of its
own, started when the machine rests; ways take turns. Sections can be named, all is the default:

  train  images/s from a warm page cache, and memory and seconds to the first batch of the same
         runs. `ours` is on shards with restart markers (--jpeg restart), like the ordinary ones
         of the original pictures, as all peers have them. Then all on the pictures reduced to
         short side 256 (--jpeg reencode), and beside them torchvision on the originals
  limit  as many one-thread processes as cores that do the bare work, without loader or batches:
         what the machine can do
  gil    microseconds an image for which the interpreter lock is held, which bounds what any
         number of threads can reach; how it is measured stands in _lock.py
  first  an index of 1,281,167 samples: seconds from a process's start to the first batch, at the
         beginning and in the middle of an epoch, and memory. webdataset has to read what it
         skips; torchvision gets a list that is as long and is not asked to resume
  cold   images/s when nothing is in the page cache: full and block shuffle, and two peers

--quick works with batches of 32, one round, and `first` on the same few pictures: some 3 minutes.
--plot draws all of it. Peers are looked for in this Python or in that of --peers: torchvision,
timm, webdataset, mosaicml-streaming, litdata, nvidia-dali-cuda130, spdl (with FFmpeg's libraries),
grain, tensorflow-cpu. ffcv cannot be had from pip alone. Name pictures of real size by --images.
All of it at full size takes 20 GB of disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from _bench import Bench, parse_sections, run_on_pictures
from _commands import OURS, drop_contents, timed, wait_for_rest, warm_contents
from _lock import Watcher
from _pictures import Setup
from _processes import (
    HERE,
    PEERS,
    Answer,
    Way,
    begin,
    expect,
    ours,
    peer,
    peers_here,
    take_turns,
)

from prep.ilsvrc import TRAIN_IMAGES
from shards.cores import available_cores

FIRST_BATCHES = 20  # of the full-scale set that are looked at
COLD_ROUNDS = 3


# --- train ---


def train(setup: Setup) -> Iterator[Bench]:
    yield from compared(
        setup,
        "original pictures",
        {"ours": setup.restart, "ours, ordinary shards": setup.ordinary},
        setup.tree,
        setup.ordinary,
    )
    yield from compared(
        setup,
        "short side 256",
        {"ours": setup.reduced, "ours, restart": setup.reduced_restart},
        setup.reduced_tree,
        setup.reduced,
    )


def compared(
    setup: Setup, title: str, mine: dict[str, Path], tree: Path, shards: Path
) -> Iterator[Bench]:
    """Ours on some shards and every peer on the same pictures."""
    benches = {
        "rate": setup.bench(title),
        **to_first_batch(setup, title),
        "memory": setup.bench(f"{title}: memory with workers", "MB"),
    }
    ways: dict[str, Way] = {}
    for name, folder in mine.items():
        ways[name] = lambda folder=folder: ours(setup, setup.spec(folder))
    if tree != setup.tree:
        original = setup.spec(setup.tree)
        ways["torchvision, PIL, original pictures"] = lambda: peer(setup, "torchvision", original)
    for name in peers_here(setup, benches["rate"]):
        data = setup.data_for(name, tree, shards)
        ways[PEERS[name][0]] = lambda name=name, data=data: peer(setup, name, setup.spec(data))
    take_turns(ways, benches["rate"].rounds, benches)
    yield from benches.values()


# --- limit, gil ---


def kinds(setup: Setup) -> dict[str, Path]:
    """The shards of ours that differ in how they are decoded."""
    return {
        "restart shards": setup.restart,
        "ordinary shards": setup.ordinary,
        "short side 256": setup.reduced,
    }


def limit(setup: Setup) -> Iterator[Bench]:
    for name, folder in kinds(setup).items():
        bench = setup.bench(f"limit, {name}")
        ways: dict[str, Way] = {
            "ours": lambda folder=folder: ours(setup, setup.spec(folder)),
            "one-thread processes, bare work": lambda folder=folder: bare(setup, folder),
        }
        take_turns(ways, bench.rounds, {"rate": bench})
        yield bench


def bare(setup: Setup, folder: Path) -> Answer:
    """As many processes as cores, begun together; the sum of what they reach."""
    warm_contents(folder)
    command = (sys.executable, HERE / "_ours.py", "bare")
    specs = [setup.spec(folder, skip=number) for number in range(available_cores())]
    processes = [begin(*command, json.dumps(vars(spec))) for spec in specs]
    for process in processes:
        expect(process, "ready")
    if not setup.options.quick:
        wait_for_rest()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    rates = [float(json.loads(process.communicate()[0])["rate"]) for process in processes]
    return {"rate": sum(rates)}


def gil(setup: Setup) -> Iterator[Bench]:
    held = setup.bench("lock held, an image", "us of processor time")
    whole = setup.bench("one thread, an image", "us of processor time")
    ways: dict[str, Way] = {
        name: lambda folder=folder: locked(setup, folder) for name, folder in kinds(setup).items()
    }
    take_turns(ways, held.rounds, {"held": held, "whole": whole})
    yield from (held, whole)


def locked(setup: Setup, folder: Path) -> Answer:
    """Microseconds an image: with the lock held, and altogether."""
    process = begin(sys.executable, HERE / "_ours.py", "held", json.dumps(vars(setup.spec(folder))))
    try:
        with contextlib.closing(Watcher(process)) as watcher:
            expect(process, "begin")
            share = watcher.share(process)
        found = json.loads(process.communicate()[0])
    except (OSError, ValueError) as error:
        process.kill()
        raise LookupError(str(error)) from None
    whole = found["seconds"] / found["images"] * 1e6
    return {"held": share * whole, "whole": whole}


# --- first ---


def first(setup: Setup) -> Iterator[Bench]:
    """At full scale, of tiny pictures: their decoding takes no time. --quick: what there is."""
    samples, index, shards, tree = scaled(setup)
    spec = setup.spec(index, batches=min(FIRST_BATCHES, len(setup.images) // setup.batch))
    later = {"skip": samples // 2 // setup.batch * setup.batch, "batches": spec.batches // 2}
    begun = to_first_batch(setup, f"{samples:,} samples")
    begun["memory"] = setup.bench(f"{samples:,} samples: memory with workers", "MB")
    resumed = to_first_batch(setup, f"{samples:,} samples, from the middle of an epoch")
    ways: dict[str, Way] = {"ours": lambda: ours(setup, spec)}
    ways_on: dict[str, Way] = {
        "ours": lambda: ours(setup, dataclasses.replace(spec, **later)),
    }
    for name in peers_here(setup, begun["start"]):
        label = PEERS[name][0]
        if name == "torchvision":
            given = dataclasses.replace(spec, data=str(setup.tree), listed=samples)
            ways[label] = lambda given=given: peer(setup, "torchvision", given)
        elif name in ("webdataset", "streaming"):
            data = str(setup.data_for(name, tree, shards))
            given = dataclasses.replace(spec, data=data)
            late = dataclasses.replace(given, **later)
            ways[label] = lambda name=name, given=given: peer(setup, name, given)
            ways_on[label] = lambda name=name, late=late: peer(setup, name, late)
    for those, benches in ((ways, begun), (ways_on, resumed)):
        take_turns(those, setup.options.rounds, benches)
        yield from benches.values()


def to_first_batch(setup: Setup, title: str) -> dict[str, Bench]:
    """Comparisons of the time to the first batch."""
    return {
        "start": setup.bench(f"{title}: start to first batch, imports counted", "s"),
        "first": setup.bench(f"{title}: import to first batch", "s"),
    }


def scaled(setup: Setup) -> tuple[int, Path, Path, Path]:
    """Number of samples; an index of archives as they lie, shards and class folders of them."""
    if setup.options.quick:
        ordinary = setup.ordinary
        return len(setup.images), ordinary, ordinary, setup.tree
    archives, out = setup.folder / "archives", setup.folder
    if not archives.exists():
        timed(OURS, "sample-data", "--out", archives, "--full-scale", hurry=True)
        timed(OURS, "index", archives, "--out", out / "index", hurry=True)
        timed(OURS, "shard", archives, "--split", "train", "--out", out / "scale", hurry=True)
    return TRAIN_IMAGES, out / "index/train", out / "scale/train", out / "scale/train"


# --- cold ---


def cold(setup: Setup) -> Iterator[Bench]:
    restart, ordinary = setup.restart, setup.ordinary
    bench = setup.bench("cold", rounds=min(COLD_ROUNDS, setup.options.rounds))
    ways: dict[str, Way] = {"ours, warm": lambda: ours(setup, setup.spec(restart))}
    for name, changes in {
        "ours": {},
        "ours, block shuffle of 16 shards": {"shuffle": "block", "window": 16},
        "ours, block shuffle of 4 shards": {"shuffle": "block", "window": 4},
        "ours, no shuffle": {"shuffle": "none"},
    }.items():
        spec = setup.spec(restart, cold=True, **changes)
        ways[name] = lambda spec=spec: dropped(restart, lambda: ours(setup, spec))
    for name in peers_here(setup, bench):
        if name in ("torchvision", "webdataset"):
            data = setup.data_for(name, setup.tree, ordinary)
            spec = setup.spec(data, cold=True)
            way = lambda name=name, spec=spec: peer(setup, name, spec)  # noqa: E731
            ways[PEERS[name][0]] = lambda data=data, way=way: dropped(data, way)
    take_turns(ways, bench.rounds, {"rate": bench})
    yield bench


def dropped(data: Path, way: Way) -> Answer:
    drop_contents(data)
    return way()


SECTIONS = {section.__name__: section for section in (train, limit, gil, first, cold)}


def main() -> None:
    options = parse_sections(__doc__, SECTIONS, count=8000, quick_rounds=1, peers=True)
    run_on_pictures(SECTIONS, Setup, options)


if __name__ == "__main__":
    main()
