"""Validation images into class folders, in place: by renames, from any state, losing nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import ImageFolder

from prep import ilsvrc
from prep.organizing.organize import Organized, organize_validation
from shards.errors import ToolError, UsageError
from shards.progress import Silent

Run = Callable[..., subprocess.CompletedProcess[str]]
Tree = dict[str, bytes]

CAT, DOG, EEL = "n00000001", "n00000002", "n00000003"
NOBODY = 65534


class Notes(Silent):
    """Progress that keeps what it is told to say."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def organize(path: Path, labels: Path | None = None, **options: Any) -> Organized:
    chosen = {"dry_run": False, "progress": Silent()} | options
    return organize_validation(path, labels=labels, **chosen)


def tree(root: Path) -> Tree:
    """The bytes of every file beneath a folder; of a link, where it leads."""
    paths = sorted(path for path in root.rglob("*") if path.is_symlink() or path.is_file())
    return {
        str(path.relative_to(root)): (
            os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        )
        for path in paths
    }


def image(number: int, wnid: str | None = None) -> str:
    return f"ILSVRC2012_val_{number:08d}" + (f"_{wnid}" if wnid else "") + ".JPEG"


def paths(found: Any) -> set[str]:
    return {each.path for each in found}


@pytest.fixture
def val(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Path:
    """Six flat images; `labels.txt` beside the folder says that two are of each of 3 classes."""
    folder = tmp_path / "set" / "val"
    folder.mkdir(parents=True)
    lines = []
    for number in range(1, 7):
        (folder / image(number)).write_bytes(jpeg(number))
        lines.append(f"{image(number)} {(CAT, DOG, EEL)[number % 3]}\n")
    (tmp_path / "labels.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return tmp_path / "labels.txt"


@pytest.fixture
def organized(jpeg: Callable[[int], bytes]) -> Tree:
    """What `val` is to become."""
    return {
        f"{(CAT, DOG, EEL)[number % 3]}/{image(number)}": jpeg(number) for number in range(1, 7)
    }


# --- from whatever state ----------------------------------------------------------------------


def test_flat_images_become_what_extraction_makes(archives: Any, run: Run, tmp_path: Path) -> None:
    done = run("imagenet-prep", "extract", archives.val, "--out", tmp_path / "extracted")
    assert done.returncode == 0, done.stderr
    flat = tmp_path / "by hand" / "val"
    with tarfile.open(archives.val) as archive:
        archive.extractall(flat, filter="data")
    organized = organize(flat, archives.devkit)
    assert (organized.moved, organized.in_place, organized.classes) == (15, 0, 3)
    assert tree(flat) == tree(tmp_path / "extracted" / "val")


def test_images_are_renamed_and_not_copied(val: Path, labels: Path) -> None:
    before = {path.name: path.stat() for path in val.iterdir()}
    organize(val, labels)
    after = {path.name: path.stat() for path in val.glob("*/*")}
    assert {name: (each.st_ino, each.st_mtime_ns) for name, each in before.items()} == {
        name: (each.st_ino, each.st_mtime_ns) for name, each in after.items()
    }


def test_a_second_run_changes_nothing(val: Path, labels: Path, organized: Tree) -> None:
    organize(val, labels)
    times = {path: path.stat().st_ctime_ns for path in (val, *val.rglob("*"))}
    again = organize(val, labels)
    assert (again.moved, again.in_place, again.classes) == (0, 6, 3)
    assert not again.strays + again.doubles + again.problems
    assert {path: path.stat().st_ctime_ns for path in (val, *val.rglob("*"))} == times
    assert tree(val) == organized


@pytest.mark.parametrize("lines", range(10))
def test_a_valprep_that_died_is_completed(
    lines: int, val: Path, labels: Path, organized: Tree
) -> None:
    """The script makes all folders and then moves image by image; it may end after any line."""
    script = [f"mkdir -p {wnid}" for wnid in (CAT, DOG, EEL)]
    script += [f"mv {Path(path).name} {Path(path).parent}/" for path in sorted(organized)]
    subprocess.run(["sh", "-c", "\n".join(script[:lines])], cwd=val, check=True)
    done = organize(val, labels)
    assert done.in_place == max(0, lines - 3)
    assert done.moved == 6 - done.in_place
    assert not done.strays + done.problems
    assert tree(val) == organized


def test_a_dry_run_tells_the_same_and_changes_nothing(val: Path, labels: Path) -> None:
    (val / CAT).mkdir()
    (val / image(3)).rename(val / CAT / image(3))
    (val / "valprep.sh").touch()
    times = {path: path.stat().st_ctime_ns for path in (val, *val.rglob("*"))}
    dry = organize(val, labels, dry_run=True)
    assert {path: path.stat().st_ctime_ns for path in (val, *val.rglob("*"))} == times
    real = organize(val, labels)
    assert (dry.dry_run, real.dry_run) == (True, False)
    for name in ("moved", "in_place", "classes", "doubles", "strays", "problems"):
        assert getattr(dry, name) == getattr(real, name)
    assert (real.moved, real.in_place, paths(real.strays)) == (5, 1, {"valprep.sh"})


def test_nothing_but_class_folders_remains(val: Path, labels: Path) -> None:
    organize(val, labels)
    assert {path.name for path in val.iterdir()} == {CAT, DOG, EEL}
    assert ImageFolder(val).classes == [CAT, DOG, EEL]
    assert len(ImageFolder(val)) == 6


# --- strays -----------------------------------------------------------------------------------


def test_strays_are_named_and_left_alone(val: Path, labels: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / image(9)).write_bytes(b"precious")
    expected = {
        "valprep.sh": ("no validation image", False),
        "ILSVRC2012_test_00000001.JPEG": ("no validation image", False),
        ".DS_Store": ("a hidden file", False),
        image(7): ("a symbolic link", False),
        "loop": ("a symbolic link", False),
        "link": ("a symbolic link", True),
        "pipe": ("no regular file", False),
        ".ipynb_checkpoints": ("a hidden folder", True),
        "empty": ("an empty folder", True),
        "notes": ("a folder without validation images", True),
        image(8): ("a folder without validation images", True),
        f"{CAT}/extra.JPG": ("no validation image", True),
        f"{CAT}/README": ("no validation image", False),
        f"{CAT}/deeper": ("a folder", True),
    }
    for name in (".ipynb_checkpoints", "empty", "notes", image(8), CAT, f"{CAT}/deeper"):
        (val / name).mkdir()
    for name in ("valprep.sh", "ILSVRC2012_test_00000001.JPEG", ".DS_Store", f"{CAT}/extra.JPG",
                 f"{CAT}/README", "notes/a.jpg", f"{image(8)}/b.jpg", ".ipynb_checkpoints/c.jpg",
                 f"{CAT}/deeper/{image(1)}"):  # fmt: skip
        (val / name).write_text(name)
    (val / image(7)).symlink_to(tmp_path / "elsewhere" / image(9))
    (val / "loop").symlink_to("loop")
    (val / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(val / "pipe")
    left = {name: data for name, data in tree(val).items() if not (val / name).is_file()}
    done = organize(val, labels)
    assert {each.path: (each.reason, each.disturbs) for each in done.strays} == expected
    assert (done.moved, done.problems) == (6, ())
    assert left.items() <= tree(val).items()
    assert (val / "notes" / "a.jpg").read_text() == "notes/a.jpg"
    assert (val / "pipe").is_fifo()
    assert (tmp_path / "elsewhere" / image(9)).read_bytes() == b"precious"


@pytest.mark.parametrize("name", [b"two\nlines.JPEG", b"\xff\xfe.JPEG", "\u202egepj.JPEG".encode(),
                                  b"\x1b[2J", b"ILSVRC2012_val_00000001.JPEG\n",
                                  "ILSVRC2012_val_\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661"
                                  ".JPEG".encode()])  # fmt: skip
def test_hostile_names_are_shown_harmlessly(name: bytes, val: Path, labels: Path, run: Run) -> None:
    (val / os.fsdecode(name)).write_bytes(b"data")
    done = run("imagenet-prep", "organize-val", val, "--labels", labels)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("stray: ")]
    assert line.endswith(": no validation image")
    assert line.isprintable()
    assert (val / os.fsdecode(name)).read_bytes() == b"data"
    report = run("imagenet-prep", "organize-val", val, "--labels", labels, "--json")
    (stray,) = json.loads(report.stdout)["strays"]
    assert os.fsencode(stray["path"]) == name


@pytest.mark.parametrize("place", ["", CAT])
@pytest.mark.parametrize("name", ["a.jpg", "b.txt", ".c", "folder/d.jpg", ".hidden/d.jpg"])
def test_what_disturbs_is_what_image_folder_takes_for_data(
    name: str, place: str, val: Path, labels: Path
) -> None:
    organize(val, labels)
    clean = ImageFolder(val)
    stray = val / place / name
    stray.parent.mkdir(exist_ok=True)
    stray.touch()
    (found,) = organize(val, labels).strays
    read = ImageFolder(val)
    assert found.disturbs == ((read.classes, read.samples) != (clean.classes, clean.samples))


# --- images that are not where they should be -------------------------------------------------


def test_an_image_in_a_wrong_folder_stays_and_is_moved_once_it_lies_flat(
    val: Path, labels: Path, organized: Tree, run: Run
) -> None:
    for folder in (EEL, "unsorted"):
        (val / folder).mkdir()
    (val / image(1)).rename(val / EEL / image(1))
    (val / image(3)).rename(val / "unsorted" / image(3))
    done = run("imagenet-prep", "organize-val", val, "--labels", labels)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"problem: {folder}/{image(number)}: in the wrong folder, {labels} says {wnid}: move it "
        "out, beside the class folders, and run the same command again"
        for folder, number, wnid in ((EEL, 1, DOG), ("unsorted", 3, CAT))
    ]
    assert {path for path in tree(val) if path not in organized} == {
        f"{EEL}/{image(1)}",
        f"unsorted/{image(3)}",
    }
    (val / EEL / image(1)).rename(val / image(1))
    (val / "unsorted" / image(3)).rename(val / image(3))
    again = organize(val, labels)
    assert (again.moved, again.in_place, again.problems) == (2, 4, ())
    assert tree(val) == organized
    assert paths(again.strays) == {"unsorted"}


def test_images_without_a_label_are_named_and_the_others_moved(
    val: Path, labels: Path, organized: Tree
) -> None:
    (val / DOG).mkdir()
    (val / image(1)).rename(val / DOG / image(1))
    lines = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join(lines[2:]))
    done = organize(val, labels)
    reason = f"{labels} has no label for it: pass labels that have one by --labels"
    assert [(each.path, each.reason) for each in done.problems] == [
        (f"{DOG}/{image(1)}", reason),
        (image(2), reason),
    ]
    assert (done.moved, done.in_place) == (4, 0)
    labels.write_text("".join(lines))
    assert organize(val, labels).moved == 1
    assert tree(val) == organized


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (f"{DOG}/{image(1)}", image(1)),
        (f"{DOG}/{image(1)}", f"{DOG}/{image(1, DOG)}"),
        (f"{DOG}/{image(1, DOG)}", image(1)),
        (image(1), image(1, DOG)),
    ],
)
def test_an_image_that_is_there_twice_is_never_lost(
    first: str, second: str, val: Path, labels: Path, organized: Tree, jpeg: Callable[[int], bytes]
) -> None:
    (val / DOG).mkdir()
    (val / image(1)).rename(val / "aside")
    for path in (first, second):
        (val / path).write_bytes(jpeg(1))
    (val / "aside").unlink()
    done = organize(val, labels)
    assert paths(done.doubles) == {second}
    assert (done.moved + done.in_place, done.problems, done.strays) == (6, (), ())
    assert tree(val) == organized | {second: jpeg(1)}
    assert organize(val, labels).moved == 0
    assert tree(val) == organized | {second: jpeg(1)}


@pytest.mark.parametrize("other", [b"", b"other"], ids=["shorter", "as long"])
@pytest.mark.parametrize(
    ("first", "stays"),
    [(f"{DOG}/{image(1)}", 1), (f"{DOG}/{image(1, DOG)}", 2), (image(1, DOG), 2)],
)
def test_two_that_differ_are_a_problem_and_both_stay(
    other: bytes, first: str, stays: int, val: Path, labels: Path, jpeg: Callable[[int], bytes]
) -> None:
    """Where one is in its place, that one counts; else nobody knows which is sound."""
    (val / DOG).mkdir()
    (val / first).write_bytes(jpeg(1))
    damaged = jpeg(1)[:-5] + other
    (val / image(1)).write_bytes(damaged)
    done = organize(val, labels)
    assert paths(done.problems) == {first, image(1)} if stays == 2 else {image(1)}
    assert (done.moved, done.in_place) == (5, 2 - stays)
    assert (val / first).read_bytes() == jpeg(1)
    assert (val / image(1)).read_bytes() == damaged


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_class_folder_that_is_none_is_a_problem(
    kind: str, val: Path, labels: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        (val / DOG).write_text("precious")
    else:
        (val / DOG).symlink_to(tmp_path / "elsewhere")
    done = organize(val, labels)
    assert paths(done.problems) == {image(1), image(4)}
    assert paths(done.strays) == {DOG}
    assert (done.moved, done.classes) == (4, 2)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (val / image(1)).is_file()


@pytest.mark.parametrize("kind", ["folder", "link", "link to nothing"])
def test_what_has_an_image_s_place_is_a_problem(
    kind: str, val: Path, labels: Path, organized: Tree
) -> None:
    """Such as class folders of links to the flat images, which a move would break."""
    place = val / DOG / image(1)
    place.parent.mkdir()
    if kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("nowhere" if "nothing" in kind else f"../{image(1)}")
    done = organize(val, labels)
    (problem,) = done.problems
    assert problem.path == image(1)
    assert f"{DOG}/{image(1)}" in problem.reason
    assert (done.moved, paths(done.strays)) == (5, {f"{DOG}/{image(1)}"})
    if kind == "folder":
        place.rmdir()
    else:
        place.unlink()
    organize(val, labels)
    assert tree(val) == organized


# --- labels -----------------------------------------------------------------------------------


def test_hugging_face_names_carry_their_class_and_become_the_original_ones(
    val: Path, organized: Tree
) -> None:
    for path in organized:
        wnid, name = path.split("/")
        (val / name).rename(val / name.replace(".JPEG", f"_{wnid}.JPEG"))
    (val / DOG).mkdir()
    (val / image(1, DOG)).rename(val / DOG / image(1, DOG))
    progress = Notes()
    done = organize(val, progress=progress)
    assert (done.labels, done.moved, done.problems) == (None, 6, ())
    assert "not checked" in progress.notes[0]
    assert tree(val) == organized
    again = organize(val)
    assert (again.moved, again.in_place) == (0, 6)


def test_names_and_labels_that_disagree_are_a_problem(val: Path, labels: Path) -> None:
    (val / image(1)).rename(val / image(1, EEL))
    done = organize(val, labels)
    (problem,) = done.problems
    assert problem.path == image(1, EEL)
    assert f"uncertain class, {DOG} or {EEL}" in problem.reason
    assert (val / image(1, EEL)).is_file()


def test_without_labels_an_image_must_lie_in_a_class_folder(val: Path, labels: Path) -> None:
    organize(val, labels)
    (val / "unsorted").mkdir()
    (val / CAT / image(3)).rename(val / "unsorted" / image(3))
    done = organize(val)
    assert paths(done.problems) == {f"unsorted/{image(3)}"}
    assert done.in_place == 5


def test_without_labels_an_image_in_two_class_folders_is_a_problem(
    val: Path, labels: Path, jpeg: Callable[[int], bytes]
) -> None:
    organize(val, labels)
    (val / EEL / image(3)).write_bytes(jpeg(3))
    done = organize(val)
    assert paths(done.problems) == {f"{CAT}/{image(3)}", f"{EEL}/{image(3)}"}
    assert done.in_place == 5


def test_no_labels_no_move(val: Path) -> None:
    before = tree(val)
    with pytest.raises(ToolError, match="pass --labels FILE") as raised:
        organize(val)
    assert str(val) in str(raised.value)
    assert tree(val) == before


@pytest.mark.parametrize("place", ["val", "."])
def test_a_devkit_in_the_folder_or_beside_it_is_used(
    place: str, archives: Any, tmp_path: Path
) -> None:
    with tarfile.open(archives.val) as archive:
        archive.extractall(tmp_path / "val", filter="data")
    kit = tmp_path / place / archives.devkit.name
    kit.symlink_to(archives.devkit)
    done = organize(tmp_path / "val")
    assert (done.labels, done.moved) == (str(kit), 15)


@pytest.mark.parametrize(
    "given", [".", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC/val"]
)
def test_kaggle_s_tree_has_its_labels(
    given: str, val: Path, labels: Path, organized: Tree, tmp_path: Path
) -> None:
    root = tmp_path / "kaggle"
    place = root / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    (place.parent / "train" / CAT).mkdir(parents=True)
    val.rename(place)
    rows = [line.split() for line in labels.read_text().splitlines()]
    (root / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n"
        + "".join(f"{Path(name).stem},{wnid} 1 2 3 4 \n" for name, wnid in rows)
    )
    progress = Notes()
    done = organize(root / given, progress=progress)
    assert done.folder == place
    assert bool(progress.notes) == (root / given != place)
    assert (done.moved, done.labels) == (6, str(root / "LOC_val_solution.csv"))
    assert tree(place) == organized


def test_the_working_folder_will_do(
    val: Path, labels: Path, organized: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [line.split() for line in labels.read_text().splitlines()]
    (val.parent / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n"
        + "".join(f"{Path(name).stem},{wnid} 1 2 3 4 \n" for name, wnid in rows)
    )
    monkeypatch.chdir(val)
    assert organize(Path()).moved == 6
    assert tree(val) == organized


# --- which folder -----------------------------------------------------------------------------


def test_a_folder_above_is_followed_to_the_images(
    val: Path, labels: Path, organized: Tree, run: Run
) -> None:
    (val.parent / "train" / CAT).mkdir(parents=True)
    done = run("imagenet-prep", "organize-val", val.parent, "--labels", labels)
    assert done.returncode == 0
    assert done.stderr == f"note: the validation images of {val.parent} are in {val}\n"
    assert done.stdout.startswith(f"{val}: 6 images moved")
    assert tree(val) == organized


def test_several_folders_of_images_are_refused(val: Path, labels: Path) -> None:
    other = val.parent / "validation"
    other.mkdir()
    (other / image(1)).touch()
    with pytest.raises(UsageError, match="give one of them") as raised:
        organize(val.parent, labels)
    assert f"{val}, {other}" in str(raised.value)


def test_flat_images_outweigh_a_folder_called_val(val: Path, labels: Path) -> None:
    """As after extracting the archive into the wrong folder: what lies in val/ is not touched."""
    place = val.parent
    (val / image(1)).rename(place / image(1))
    done = organize(place, labels)
    assert (done.folder, done.moved) == (place, 1)
    assert paths(done.problems) == {f"val/{image(number)}" for number in range(2, 7)}


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda _: None, 1, ["does not exist"]),
        (lambda path: path.write_bytes(b"tar"), 2, ["is no folder", "imagenet-prep extract"]),
        (Path.mkdir, 1, ["no validation images", "ILSVRC2012_val_*.JPEG", "val,"]),
        (lambda path: (path / "val" / CAT).mkdir(parents=True), 1, ["no validation images"]),
    ],
    ids=["absent", "file", "empty", "without images"],
)
def test_what_is_no_folder_of_images_is_refused(
    make: Callable[[Path], None], code: int, words: list[str], run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "there"
    make(path)
    done = run("imagenet-prep", "organize-val", path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"error: {path} ")
    assert all(word in done.stderr for word in words)


def test_a_folder_of_links_is_refused(val: Path, labels: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for path in val.iterdir():
        (links / path.name).symlink_to(path)
    with pytest.raises(ToolError, match="symbolic links, organise the folder"):
        organize(links, labels)
    assert len(tree(links)) == 6


# --- the official set -------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """50,000 sparse files of the right names that just fill an archive of the published size."""
    published = next(each for each in ilsvrc.ARCHIVES if each.kind is ilsvrc.ArchiveKind.VALIDATION)
    assert published.bytes is not None
    # Headers, contents and 1,024 bytes of end, in blocks of 512, are padded to 20 of these.
    blocks = published.bytes // 512 - 20 + 1 - 2 - ilsvrc.VALIDATION_IMAGES
    each, more = divmod(blocks, ilsvrc.VALIDATION_IMAGES)
    folder = tmp_path / "val"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    for number in range(1, ilsvrc.VALIDATION_IMAGES + 1):
        file = os.open(image(number), os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
        os.truncate(file, (each + (number <= more)) * 512 - 511 * (number == 7))
        os.close(file)
    os.close(descriptor)
    return folder


def official_tree(folder: Path) -> None:
    """Every image is in the folder of its class, fifty a class, and there is nothing else."""
    classes = [each.wnid for each in ilsvrc.classes()]
    expected: dict[str, list[str]] = {wnid: [] for wnid in classes}
    for number, label in enumerate(ilsvrc.validation_labels(), start=1):
        expected[classes[label]].append(image(number))
    assert {
        path.name: sorted(each.name for each in path.iterdir()) for path in folder.iterdir()
    } == expected


def test_the_complete_official_set_needs_no_labels(official: Path) -> None:
    """Counting what is in class folders already, and whatever else lies about."""
    (official / "n01751748").mkdir()
    (official / image(1)).rename(official / "n01751748" / image(1))
    (official / "n09193705").mkdir()
    (official / "valprep.sh").touch()
    done = organize(official)
    assert (done.labels, done.moved, done.in_place) == ("the built-in table", 49_999, 1)
    assert (done.classes, done.problems, paths(done.strays)) == (1_000, (), {"valprep.sh"})
    (official / "valprep.sh").unlink()
    official_tree(official)
    again = organize(official)
    assert (again.moved, again.in_place) == (0, 50_000)


def test_what_only_looks_like_the_official_set_is_refused(official: Path) -> None:
    """The set is at the edge: one byte less of image 7, or a block of any, is another archive."""
    assert organize(official, dry_run=True).moved == 50_000
    seventh, last = official / image(7), official / image(50_000)
    size = seventh.stat().st_size
    for path, less in ((seventh, 1), (last, 512)):
        before = path.stat().st_size
        os.truncate(path, before - less)
        with pytest.raises(ToolError, match="does not hold the official validation images"):
            organize(official)
        os.truncate(path, before)
    os.truncate(seventh, size + 20 * 512)
    with pytest.raises(ToolError, match="official"):
        organize(official)
    os.truncate(seventh, size)
    last.rename(official / image(50_001))
    with pytest.raises(ToolError, match="official"):
        organize(official)
    (official / image(50_001)).unlink()
    with pytest.raises(ToolError, match="official"):
        organize(official)
    assert len(list(official.iterdir())) == 49_999


def test_a_killed_run_is_completed_by_the_same_command(
    official: Path,
    start: Callable[..., subprocess.Popen[str]],
    wait_until: Callable[..., None],
) -> None:
    moved = 0
    for wnid in (ilsvrc.classes()[number].wnid for number in (0, 150, 400)):
        process = start("imagenet-prep", "organize-val", official)
        wait_until(process, lambda sign=official / wnid: sign.exists())
        process.kill()
        process.wait()
        flat = len(list(official.glob("*.JPEG")))
        moved, before = 50_000 - flat, moved
        assert before <= moved < 50_000
    done = organize(official)
    assert (done.moved, done.in_place) == (flat, moved)
    assert not done.strays
    official_tree(official)


# --- what stands in the way -------------------------------------------------------------------


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Without root's right to read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def relative(val: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`val` by a path on which no other folder needs to be searched, owned by nobody."""
    monkeypatch.chdir(val.parent)
    val.parent.chmod(0o755)
    if os.geteuid() == 0:
        for path in (val, *val.iterdir()):
            os.chown(path, NOBODY, NOBODY)
    return Path("val")


@pytest.mark.parametrize("mode", [0o555, 0o300, 0o000])
def test_a_folder_that_may_not_be_changed_or_read_is_named(
    mode: int, val: Path, relative: Path, labels: Path
) -> None:
    before = tree(val)
    content = labels.read_text()
    (val.parent / "labels.txt").write_text(content)
    val.chmod(mode)
    try:
        with unprivileged(), pytest.raises(PermissionError) as raised:
            organize(relative, Path("labels.txt"))
    finally:
        val.chmod(0o755)
    assert str(raised.value.filename) == ("val/n00000001" if mode == 0o555 else "val")
    assert tree(val) == before


def test_a_class_folder_of_another_owner_stops_the_run_and_is_named(
    val: Path, relative: Path, labels: Path, organized: Tree
) -> None:
    """As root's valprep.sh left it. What came before stays moved; made right, it goes on."""
    (val.parent / "labels.txt").write_text(labels.read_text())
    (val / DOG).mkdir(mode=0o555)
    with unprivileged(), pytest.raises(PermissionError) as raised:
        organize(relative, Path("labels.txt"))
    assert raised.value.filename == f"val/{image(1)}"
    assert len(list(val.glob("*/*"))) == 2
    (val / DOG).chmod(0o777)
    with unprivileged():
        assert organize(relative, Path("labels.txt")).moved == 4
    assert tree(val) == organized


def test_a_folder_like_lost_and_found_is_a_stray(val: Path, relative: Path, labels: Path) -> None:
    (val.parent / "labels.txt").write_text(labels.read_text())
    (val / "lost+found").mkdir(mode=0o700)
    if os.geteuid() != 0:
        (val / "lost+found").chmod(0)
    with unprivileged():
        done = organize(relative, Path("labels.txt"))
    (stray,) = done.strays
    assert (stray.path, stray.reason) == ("lost+found", "a folder that may not be read")
    assert (stray.disturbs, done.moved) == (True, 6)
    (val / "lost+found").chmod(0o700)


def test_a_class_folder_that_may_not_be_read_is_no_stray(
    val: Path, relative: Path, labels: Path
) -> None:
    (val.parent / "labels.txt").write_text(labels.read_text())
    (val / DOG).mkdir()
    (val / DOG).chmod(0)
    with unprivileged(), pytest.raises(PermissionError) as raised:
        organize(relative, Path("labels.txt"))
    assert raised.value.filename == f"val/{DOG}"
    (val / DOG).chmod(0o755)
    assert len(list(val.glob("*.JPEG"))) == 6


def test_a_read_only_disk_is_named(
    small_disk: Callable[[str], Any], val: Path, labels: Path, run: Run
) -> None:
    disk = small_disk("size=1m")
    for path in val.iterdir():
        (disk.path / path.name).write_bytes(path.read_bytes())
    disk.resize("ro")
    done = run("imagenet-prep", "organize-val", disk.path, "--labels", labels)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {disk.path}/{CAT}: Read-only file system")
    dry = run("imagenet-prep", "organize-val", disk.path, "--labels", labels, "--dry-run")
    assert dry.returncode == 0
    assert len(list(disk.path.iterdir())) == 6


def test_a_second_process_is_refused(val: Path, labels: Path) -> None:
    descriptor = os.open(val, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ToolError, match="another process; wait"):
        organize(val, labels)
    os.close(descriptor)
    assert organize(val, labels).moved == 6


class Meddler(Silent):
    """Another program that changes the folder when the moves begin."""

    def __init__(self, change: Callable[[], object]) -> None:
        self._change = change

    def start(self, *_: object) -> None:
        self._change()


def test_a_file_that_appears_meanwhile_is_not_replaced(
    val: Path, labels: Path, organized: Tree
) -> None:
    def appear() -> None:
        (val / DOG).mkdir()
        (val / DOG / image(1)).write_text("precious")

    with pytest.raises(ToolError, match=r"\(File exists\).* run the same command again") as raised:
        organize(val, labels, progress=Meddler(appear))
    assert str(val / image(1)) in str(raised.value)
    assert (val / DOG / image(1)).read_text() == "precious"
    assert (val / image(1)).is_file()
    (val / DOG / image(1)).unlink()
    organize(val, labels)
    assert tree(val) == organized


def test_an_image_that_goes_meanwhile_is_named(val: Path, labels: Path, organized: Tree) -> None:
    """A valprep.sh that is still at work: the same command completes both."""

    def go() -> None:
        (val / image(1)).rename(val.parent / image(1))

    with pytest.raises(ToolError, match=r"\(No such file .* run the same") as raised:
        organize(val, labels, progress=Meddler(go))
    assert str(val / image(1)) in str(raised.value)
    (val.parent / image(1)).rename(val / DOG / image(1))
    organize(val, labels)
    assert tree(val) == organized


# --- the command line -------------------------------------------------------------------------


def test_the_command_says_what_it_did(val: Path, labels: Path, run: Run) -> None:
    (val / "valprep.sh").touch()
    (val / "notes").mkdir()
    command = ("imagenet-prep", "organize-val", val, "--labels", labels)
    dry = run(*command, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.splitlines() == [
        f"{val}: 6 images would be moved, 0 in place already, in 3 class folders",
        f"labels: {labels}",
        "stray: valprep.sh: no validation image",
        "stray: notes: an empty folder",
        (
            "1 of the strays would be taken for data by readers of class folders, such as "
            "torchvision's ImageFolder: move them away"
        ),
    ]
    first, *rest = run(*command).stdout.splitlines()
    assert first.startswith(f"{val}: 6 images moved, 0 in place already, in 3 class folders (")
    assert rest == dry.stdout.splitlines()[1:]
    again = run(*command)
    assert again.stdout.startswith(f"{val}: nothing to move, 6 images in 3 class folders\n")
    assert again.returncode == 0


def test_the_result_as_json(
    val: Path, labels: Path, run: Run, jpeg: Callable[[int], bytes]
) -> None:
    (val / EEL).mkdir()
    (val / EEL / image(1)).write_bytes(jpeg(1))
    (val / image(2, EEL)).write_bytes(jpeg(2))
    (val / "a\nb").touch()
    done = run("imagenet-prep", "organize-val", val, "--labels", labels, "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer.pop("seconds") > 0
    assert answer.pop("problems")[0]["path"] == f"{EEL}/{image(1)}"
    assert answer == {
        "folder": str(val),
        "labels": str(labels),
        "dry_run": False,
        "moved": 6,
        "in_place": 0,
        "classes": 3,
        "doubles": [{"path": image(2, EEL), "reason": f"the same bytes as {image(2)}"}],
        "strays": [{"path": "a\nb", "reason": "no validation image", "disturbs": False}],
        "ok": False,
    }


def test_many_findings_are_counted_and_ten_shown(val: Path, labels: Path, run: Run) -> None:
    for number in range(12):
        (val / f"stray{number:02d}").touch()
    done = run("imagenet-prep", "organize-val", val, "--labels", labels)
    lines = [line for line in done.stdout.splitlines() if line.startswith("stray: ")]
    assert lines[0] == "stray: stray00: no validation image"
    assert lines[9:] == [
        "stray: stray09: no validation image",
        "stray: 2 more, all of them with --json",
    ]
