"""The built-in tables agree with each other and with what is published of ILSVRC2012."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from prep import ilsvrc


def test_classes_are_the_thousand_in_sorted_order() -> None:
    classes = ilsvrc.classes()
    wnids = [entry.wnid for entry in classes]
    assert len(classes) == ilsvrc.CLASSES
    assert wnids == sorted(set(wnids))
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids)
    assert len({entry.name for entry in classes}) == ilsvrc.CLASSES
    assert (classes[0].name, classes[134].name, classes[517].name) == (
        "tench",
        "crane bird",
        "crane",
    )


def test_every_id_names_one_class_and_none_is_its_index_plus_one() -> None:
    wnids = ilsvrc.id_to_wnid()
    assert sorted(wnids) == [entry.wnid for entry in ilsvrc.classes()]
    assert wnids[:3] == ("n02119789", "n02100735", "n02110185")
    index = {entry.wnid: number for number, entry in enumerate(ilsvrc.classes())}
    assert not any(index[wnid] == number for number, wnid in enumerate(wnids))


def test_validation_labels_are_fifty_a_class_and_cannot_be_changed() -> None:
    labels = ilsvrc.validation_labels()
    assert labels.shape == (ilsvrc.VALIDATION_IMAGES,)
    assert labels.dtype == np.int16
    assert not labels.flags.writeable
    counts = np.bincount(labels, minlength=ilsvrc.CLASSES)
    assert counts.tolist() == [ilsvrc.VALIDATION_IMAGES_A_CLASS] * ilsvrc.CLASSES
    assert labels[:5].tolist() == [65, 970, 230, 809, 516]


def test_labels_as_ids_are_the_devkits_ground_truth() -> None:
    ids = {wnid: number for number, wnid in enumerate(ilsvrc.id_to_wnid(), start=1)}
    wnids = [ilsvrc.classes()[label].wnid for label in ilsvrc.validation_labels()[:10]]
    assert wnids[0] == "n01751748"
    assert [ids[wnid] for wnid in wnids] == [490, 361, 171, 822, 297, 482, 13, 704, 599, 164]


def test_labels_are_the_published_ones_to_the_last() -> None:
    """Digests of what valprep.sh says, a wnid a line, and of the same in the devkit's IDs."""
    ids = {wnid: number for number, wnid in enumerate(ilsvrc.id_to_wnid(), start=1)}
    wnids = [ilsvrc.classes()[label].wnid for label in ilsvrc.validation_labels()]
    lines = {"valprep": wnids, "devkit": [ids[wnid] for wnid in wnids]}
    digests = {
        name: hashlib.sha256("".join(f"{line}\n" for line in of).encode()).hexdigest()
        for name, of in lines.items()
    }
    assert digests == {
        "valprep": "313fc3f23c864dde9183c9a368809065765dd1b657a6904fded44e3e46d34604",
        "devkit": "88d44095bd81cb785618db8e72eeb025fa1f646adf359d9b0efbf625244e0df3",
    }


def test_tables_are_those_they_were_packed_from(real_data: Path) -> None:
    sources = {
        "wnids": real_data / "ilsvrc2012_val_wnids.txt",
        "ids": real_data / "ilsvrc2012_id.tsv",
        "classes": real_data / "ilsvrc2012_classes.tsv",
    }
    if not all(path.exists() for path in sources.values()):
        pytest.skip(f"{real_data} does not hold {', '.join(map(str, sources.values()))}")
    rows = {
        name: [line.split("\t") for line in path.read_text().splitlines()]
        for name, path in sources.items()
    }
    classes = ilsvrc.classes()
    assert [[classes[label].wnid] for label in ilsvrc.validation_labels()] == rows["wnids"]
    assert [[str(n), wnid] for n, wnid in enumerate(ilsvrc.id_to_wnid(), 1)] == [
        row[:2] for row in rows["ids"]
    ]
    assert [[str(n), each.wnid, each.name] for n, each in enumerate(classes)] == rows["classes"]


def test_archive_table() -> None:
    names = [archive.name for archive in ilsvrc.ARCHIVES]
    assert len(set(names)) == len({archive.md5 for archive in ilsvrc.ARCHIVES}) == len(names)
    assert {archive.kind for archive in ilsvrc.ARCHIVES} == set(ilsvrc.ArchiveKind)
    for archive in ilsvrc.ARCHIVES:
        assert re.fullmatch(r"[0-9a-f]{32}", archive.md5)
        assert archive.bytes is None or archive.bytes % 10_240 == 0


def test_known_oddities_are_training_images_of_known_classes() -> None:
    assert len(ilsvrc.CMYK_IMAGES) == 22
    wnids = {entry.wnid for entry in ilsvrc.classes()}
    for key in (*ilsvrc.CMYK_IMAGES, ilsvrc.PNG_IMAGE, ilsvrc.BROKEN_EXIF_IMAGE):
        assert key.split("_")[0] in wnids
