"""Labels of validation images and lists of classes: never guessed, never renumbered silently."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep import ilsvrc
from prep.devkit import read_devkit
from prep.labels import (
    ImageLabels,
    class_list,
    find_labels,
    is_official,
    note_numbering,
    read_classes,
    read_labels,
)
from prep.sample.data import VALIDATION_ARCHIVE
from shards.errors import DamagedData, ToolError
from shards.progress import Silent
from shards.sample import Class


class Notes(Silent):
    """Progress that keeps what it is told to say."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def labels_file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "labels"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


FORMS = {
    "lines": "ILSVRC2012_val_00000001.JPEG n01440764\nILSVRC2012_val_00000002.JPEG n01443537\n",
    "lines without ending": "ILSVRC2012_val_00000001 n01440764\nILSVRC2012_val_00000002 n01443537",
    "tabs and blank lines": (
        "\n ILSVRC2012_val_00000001.JPEG\tn01440764\r\n\r\nILSVRC2012_val_00000002.JPEG n01443537"
    ),
    "one a line": "n01440764\nn01443537\n",
    "Kaggle": (
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000002,n01443537 1 2 3 4 n01443537 5 6 7 8 \n"
        "ILSVRC2012_val_00000001,n01440764 85 1 499 272 \n"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_labels_is_read(form: str, labels_file: Callable[..., Path]) -> None:
    labels = read_labels(labels_file(FORMS[form]))
    assert labels.class_of("ILSVRC2012_val_00000001.JPEG") == "n01440764"
    assert labels.class_of("ILSVRC2012_val_00000002.JPEG") == "n01443537"


def test_a_devkit_gives_the_labels_in_order_of_image_number(archives: Any) -> None:
    labels = read_labels(archives.devkit)
    expected = read_devkit(archives.devkit).validation_wnids()
    found = [labels.class_of(f"ILSVRC2012_val_{number:08d}.JPEG") for number in range(1, 16)]
    assert tuple(found) == expected


def test_a_devkit_beside_the_archive_is_used(archives: Any) -> None:
    assert find_labels(archives.val, None, None, Silent()) == read_labels(archives.devkit)


def test_a_half_written_devkit_beside_the_archive_is_passed_over(
    archives: Any, tmp_path: Path
) -> None:
    for path in (archives.val, archives.devkit):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / f".tmp-1-{archives.devkit.name}").write_bytes(b"\x1f\x8b")
    assert find_labels(tmp_path / archives.val.name, None, None, Silent()).by_stem


def test_given_labels_win_over_a_devkit(archives: Any, labels_file: Callable[..., Path]) -> None:
    labels = find_labels(archives.val, None, labels_file(FORMS["lines"]), Silent())
    assert labels.class_of("ILSVRC2012_val_00000001.JPEG") == "n01440764"


def test_a_look_alike_gets_no_labels(archives: Any, tmp_path: Path) -> None:
    alone = tmp_path / VALIDATION_ARCHIVE
    shutil.copy(archives.val, alone)
    assert not is_official(alone, ilsvrc.ArchiveKind.VALIDATION, Silent())
    with pytest.raises(ToolError, match="pass --labels FILE") as raised:
        find_labels(alone, None, None, Silent())
    assert str(alone) in str(raised.value)


def test_the_size_alone_makes_nothing_official(tmp_path: Path) -> None:
    """A file of the published length, without its bytes on disk: only the MD5 can tell."""
    published = next(each for each in ilsvrc.ARCHIVES if each.name.endswith("val.tar"))
    path = tmp_path / VALIDATION_ARCHIVE
    with path.open("wb") as file:
        file.truncate(published.bytes + 1)
    assert not is_official(path, published.kind, Silent())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no labels"),
        ("\n\n", "holds no labels"),
        ("a b c\n", "is no file of labels"),
        ("a b\nc\n", "is no file of labels"),
        ("image,label\na.jpg,cat dog\n", "is no file of labels"),
        (b"\xff\xfe\x00a", "neither a devkit archive nor text"),
        (b"\x1f\x8b\x08broken", "labels"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "labels"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001\n", "labels"),
        ("ImageId,PredictionString\n", "labels"),
        ("a.JPEG n01440764\na.JPEG n01443537\n", "a"),
    ],
)
def test_what_is_no_file_of_labels_is_refused_by_name(
    text: str | bytes, reason: str, labels_file: Callable[..., Path]
) -> None:
    path = labels_file(text)
    with pytest.raises(ToolError, match=reason) as raised:
        read_labels(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "line", ['"' + "x" * 200_000 + '",n01440764 1', '"', "\0,\0", ",", '""a,b']
)
def test_odd_lines_of_kaggle_s_raise_nothing_but_our_error(
    line: str, labels_file: Callable[..., Path]
) -> None:
    path = labels_file(f"ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1\n{line}\n")
    try:
        labels = read_labels(path)
    except ToolError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert labels.class_of("ILSVRC2012_val_00000001.JPEG") == "n01440764"


@pytest.mark.parametrize("name", ["../x", "/x", "..", ".", ".hidden", "a/b", "a\\b", "x" * 101])
def test_a_class_that_would_be_a_path_is_refused(
    name: str, labels_file: Callable[..., Path]
) -> None:
    with pytest.raises(DamagedData, match="cannot be a class"):
        read_labels(labels_file(f"ILSVRC2012_val_00000001.JPEG {name}\n"))


def test_the_devkit_s_numbers_are_not_taken_for_classes(labels_file: Callable[..., Path]) -> None:
    """ILSVRC2012_validation_ground_truth.txt alone says nothing without its meta.mat."""
    with pytest.raises(ToolError, match="devkit"):
        read_labels(labels_file("490\n361\n171\n"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=f"{tmp_path}/absent does not exist; --labels"):
        read_labels(tmp_path / "absent")
    with pytest.raises(ToolError, match=f"{tmp_path}/absent does not exist; --classes"):
        read_classes(tmp_path / "absent")


def test_an_image_without_a_label_is_named() -> None:
    labels = ImageLabels(origin="/labels.txt", by_stem={"a": "cat"})
    with pytest.raises(ToolError, match=r"/labels\.txt has no label for the image b\.JPEG"):
        labels.class_of("b.JPEG")


# --- lists of classes -------------------------------------------------------------------------


def test_ilsvrc_s_thousand_are_in_their_own_order_without_a_word() -> None:
    notes = Notes()
    classes = class_list({each.wnid for each in ilsvrc.classes()}, None)
    note_numbering(classes, notes)
    assert [each.id for each in classes] == sorted(each.id for each in classes)
    assert (len(classes), classes[0], classes[999].name) == (
        1000,
        Class("n01440764", "tench"),
        "toilet tissue",
    )
    assert notes.notes == []


def test_other_classes_are_sorted_and_said_aloud() -> None:
    notes = Notes()
    classes = class_list({"dog", "cat", "n01440764"}, None)
    note_numbering(classes, notes)
    assert [tuple(each) for each in classes] == [
        ("cat", "cat"),
        ("dog", "dog"),
        ("n01440764", "tench"),
    ]
    assert "3 classes found" in notes.notes[0]


def test_a_given_list_decides_the_order(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("dog the animal\n\ncat\nbird\n")
    classes = class_list({"cat", "dog"}, path)
    assert [each.id for each in classes] == ["dog", "cat", "bird"]


def test_a_list_of_other_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("cat\n")
    with pytest.raises(ToolError, match=f"{path} lists none of the classes that were found"):
        class_list({"dog"}, path)
    assert [each.id for each in class_list({"cat", "dog"}, path)] == ["cat"]


@pytest.mark.parametrize("data", [b"", b"\n", b"cat\ncat\n", b"\xff\xfe"])
def test_a_list_that_is_none_is_refused_by_name(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(data)
    with pytest.raises(DamagedData, match=str(path)):
        read_classes(path)
