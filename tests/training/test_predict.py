"""Pictures are answered as an evaluation answers them; what is no picture is named."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from models import CLASSES, NAMES, SIZE, colour_onnx, network, write_checkpoint
from PIL import Image

import cli
from shards.dataset import Dataset
from shards.errors import ToolError, UsageError
from shards.progress import Silent
from training.results.evaluation import How, evaluate_saved
from training.results.predict import Prediction, find_pictures, predict
from training.results.saved import open_saved
from training.results.sheet import COLUMNS, Shown, plan_sheet, write_sheet

CPU = How(threads=2, device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("saved") / "best.pt")


@pytest.fixture
def resnet() -> Callable[..., Result]:
    def call(*arguments: object, given: bytes = b"") -> Result:
        return CliRunner().invoke(cli.resnet, [str(each) for each in arguments], input=given)

    return call


@pytest.fixture(scope="module")
def folder(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The validation images as class folders."""
    root = tmp_path_factory.mktemp("pictures")
    with Dataset.open(shards / "val") as dataset:
        for number, key in enumerate(dataset.keys.tolist()):
            place = root / dataset.classes[dataset.labels[number]]
            place.mkdir(exist_ok=True)
            (place / f"{key.decode()}.JPEG").write_bytes(dataset.read(number).data)
    return root


def answers(path: Path, paths: list[Path], **options: Any) -> list[Prediction]:
    given: dict[str, Any] = {"top": 5, "exif": False, "progress": Silent()} | options
    return list(predict(open_saved(path), paths, "auto", CPU, **given))


# --- answers ----------------------------------------------------------------------------------


def test_a_file_is_answered_as_the_same_sample_of_an_evaluation(
    checkpoint: Path, shards: Path, folder: Path
) -> None:
    found = answers(checkpoint, find_pictures([folder]))
    evaluated = evaluate_saved(
        [(checkpoint, "auto")], shards / "val", CPU, keep_answers=True, progress=Silent()
    )
    kept = evaluated.models[0].answers
    assert kept is not None
    by_key = {each.path.stem: each.top for each in found}
    assert len(by_key) == 15
    for number, key in enumerate(evaluated.keys):
        classes, chances = zip(*by_key[key], strict=True)
        assert list(classes) == kept.classes[number].tolist()
        assert np.abs(np.array(chances) - kept.probabilities[number]).max() < 1e-5


def test_answers_come_in_order_and_bad_files_are_among_them(
    checkpoint: Path, picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    good = tmp_path / "b.jpg"
    good.write_bytes(picture("colour.jpg"))
    (tmp_path / "a.txt").write_text("no picture")
    (tmp_path / "c.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    thin = tmp_path / "thin.png"
    Image.new("RGB", (60000, 1)).save(thin)
    dot = tmp_path / "dot.bmp"
    Image.new("RGB", (1, 1), (9, 9, 9)).save(dot)
    paths = [good, tmp_path / "a.txt", tmp_path / "c.png", tmp_path / "pipe", thin, dot, good]
    found = answers(checkpoint, paths)
    assert [each.path for each in found] == paths
    problems = [each.problem for each in found]
    assert problems[0] is problems[5] is problems[6] is None
    assert problems[1] == "it is no picture that Pillow knows"
    assert problems[2] == "it is empty"
    assert problems[3] == "it is not a file"
    assert problems[4] == "it has 60000 x 1 pixels, which is too thin to be resized"
    assert found[0].top == found[6].top
    assert sum(chance for _, chance in found[5].top) == pytest.approx(1)


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a.webp", ".hidden.png", ".git/c.png", "read.me", "b/x.eps"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    found = find_pictures([tmp_path / "in" / "read.me", tmp_path / "in", Path("-")])
    names = [str(each.relative_to(tmp_path / "in")) for each in found[:-1]]
    assert names == ["read.me", "a.webp", "b/1.png", "b/2.JPG"]
    assert found[-1] == Path("-")
    with pytest.raises(ToolError, match="nowhere does not exist; give a picture"):
        find_pictures([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty has no pictures in it"):
        find_pictures([tmp_path / "empty"])
    with pytest.raises(UsageError, match="- is standard input, which can be read once"):
        find_pictures([Path("-"), Path("-")])


def test_exif_orientation_is_for_those_who_ask(checkpoint: Path, tmp_path: Path) -> None:
    image = Image.linear_gradient("L").convert("RGB")
    tags = Image.Exif()
    tags[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=tags)
    image.save(tmp_path / "plain.png")
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    asked = [tmp_path / name for name in ("turned.png", "plain.png", "upright.png")]
    turned, plain, upright = (dict(each.top) for each in answers(checkpoint, asked))
    assert turned == pytest.approx(plain, abs=1e-5)
    assert turned != pytest.approx(upright, abs=1e-5)
    (asked_for,) = answers(checkpoint, asked[:1], exif=True)
    assert dict(asked_for.top) == pytest.approx(upright, abs=1e-5)


# --- the command ------------------------------------------------------------------------------


def test_the_command_shows_names_and_what_it_knows(
    resnet: Callable[..., Result], checkpoint: Path, folder: Path
) -> None:
    told = resnet("predict", checkpoint, folder, "--top", 2, "--device", "cpu")
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert lines[0].split() == ["picture", "class", "probability", "is"]
    assert len(lines) == 1 + 2 * 15
    data = json.loads(resnet("predict", checkpoint, folder, "--device", "cpu", "--json").stdout)
    assert len(data["pictures"]) == 15
    for each in data["pictures"]:
        assert CLASSES[each["known"]] == Path(each["path"]).parent.name
        assert each["known_name"] == NAMES[each["known"]]
        assert {answer["name"] for answer in each["top"]} == set(NAMES)


def test_standard_input_is_a_picture(
    resnet: Callable[..., Result], checkpoint: Path, picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture("colour.jpg"))
    options = ("--device", "cpu", "--json", "--sheet", tmp_path / "s.png")
    data = json.loads(
        resnet("predict", checkpoint, "-", *options, given=picture("colour.jpg")).stdout
    )
    filed = json.loads(resnet("predict", checkpoint, tmp_path / "a.jpg", *options).stdout)
    assert data["pictures"][0]["top"] == filed["pictures"][0]["top"]
    assert data["pictures"][0]["path"] == "-"


def test_bad_files_are_named_and_the_exit_code_is_1(
    resnet: Callable[..., Result], checkpoint: Path, picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    (tmp_path / "good.jpg").write_bytes(picture("colour.jpg"))
    (tmp_path / "bad.jpg").write_bytes(picture("colour.jpg")[:100])
    told = resnet("predict", checkpoint, tmp_path, "--device", "cpu", "--sheet", tmp_path / "s.png")
    assert told.exit_code == 1
    assert told.stderr.startswith(f"error: {tmp_path / 'bad.jpg'}: it ")
    assert "good.jpg" in told.stdout
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.format == "PNG"


def test_labels_and_names_of_files_say_what_pictures_are(
    resnet: Callable[..., Result], checkpoint: Path, picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    (tmp_path / "n02342885_7.JPEG").write_bytes(picture("colour.jpg"))
    (tmp_path / "cat.jpg").write_bytes(picture("colour.jpg"))
    (tmp_path / "labels.txt").write_text("cat.jpg n03786901\n")
    options = ("--device", "cpu", "--json")
    data = json.loads(resnet("predict", checkpoint, tmp_path, *options).stdout)
    assert [each["known"] for each in data["pictures"]] == [None, 1]  # cat.jpg comes first
    labels = ("--labels", tmp_path / "labels.txt")
    data = json.loads(resnet("predict", checkpoint, tmp_path / "cat.jpg", *labels, *options).stdout)
    assert data["pictures"][0]["known_name"] == "mortar"


def test_class_lists_are_given_known_or_absent(
    resnet: Callable[..., Result], picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture("colour.jpg"))
    torch.save(network().state_dict(), tmp_path / "three.pt")
    torch.save(network(1000).state_dict(), tmp_path / "thousand.pt")
    options = (tmp_path / "a.jpg", "--device", "cpu", "--image-size", SIZE)
    told = resnet("predict", tmp_path / "three.pt", *options)
    assert "class 2" in told.stdout
    assert "three.pt is resnet18, a state dict" in told.stderr
    told = resnet("predict", tmp_path / "thousand.pt", *options, "--json")
    assert "its 1000 are taken for ILSVRC2012's (--classes)" in told.stderr
    names = [each["name"] for each in json.loads(told.stdout)["pictures"][0]["top"]]
    assert len(names) == 5
    assert not any(name.startswith("class ") for name in names)
    (tmp_path / "list.txt").write_text("n01440764 tench\nred\nblue\n")
    told = resnet("predict", tmp_path / "three.pt", *options, "--classes", tmp_path / "list.txt")
    assert "blue" in told.stdout
    (tmp_path / "list.txt").write_text("red\nblue\n")
    told = resnet("predict", tmp_path / "three.pt", *options, "--classes", tmp_path / "list.txt")
    assert told.exit_code == 2
    assert "the class list has 2 classes and" in told.stderr


def test_onnx_files_answer_too_and_lists_must_fit_what_they_leave_open(
    resnet: Callable[..., Result], picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "a.jpg").write_bytes(picture("colour.jpg"))
    path = colour_onnx(tmp_path / "a.onnx", metadata={"classes": CLASSES, "class_names": NAMES})
    told = resnet("predict", path, tmp_path / "a.jpg")
    assert told.exit_code == 0, told.output
    assert "hamster" in told.stdout
    graph = onnx.load(colour_onnx(tmp_path / "b.onnx"))
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    (tmp_path / "b.onnx").write_bytes(graph.SerializeToString())
    (tmp_path / "list.txt").write_text("red\nblue\n")
    told = resnet(
        "predict", tmp_path / "b.onnx", tmp_path / "a.jpg", "--classes", tmp_path / "list.txt"
    )
    assert told.exit_code == 2
    assert "the class list has 2 classes and" in told.stderr


def test_logits_that_are_no_numbers_are_no_answer(
    resnet: Callable[..., Result], picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture("colour.jpg"))
    state = dict(network().state_dict())
    state["fc.bias"] = torch.tensor([0, math.nan, 0])
    torch.save(state, tmp_path / "nan.pt")
    options = (tmp_path / "a.jpg", "--device", "cpu", "--image-size", SIZE)
    told = resnet("predict", tmp_path / "nan.pt", *options, "--sheet", tmp_path / "s.png")
    assert told.exit_code == 1
    assert "a.jpg: the model gives logits that are not finite for it; use other" in told.stderr
    assert told.stderr.count("error:") == 1
    assert told.stdout == f"{tmp_path / 's.png'}: 1 picture\n"
    told = resnet("predict", tmp_path / "nan.pt", *options, "--json")
    assert told.exit_code == 1
    (found,) = json.loads(told.stdout)["pictures"]
    assert (found["top"], "not finite" in found["problem"]) == ([], True)


def test_names_cannot_steer_the_terminal(
    resnet: Callable[..., Result], picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "a\x1b[2J.jpg").write_bytes(picture("colour.jpg"))
    names = ("one\ntwo", "\x1b]0;x\x07", "half \ud800")
    path = colour_onnx(tmp_path / "a.onnx", metadata={"class_names": names, "model": "\x1b[31m"})
    sheet = tmp_path / "s.png"
    told = resnet("predict", path, tmp_path / "a\x1b[2J.jpg", "--sheet", sheet)
    assert told.exit_code == 0, told.output
    assert "\x1b" not in told.stdout
    assert len(told.stdout.splitlines()) == 5  # titles, three classes, the sheet
    for escaped in (r"one\ntwo", r"\x1b]0;x\x07", r"half \ud800", r"a\x1b[2J.jpg"):
        assert escaped in told.stdout
    data = json.loads(resnet("predict", path, tmp_path / "a\x1b[2J.jpg", "--json").stdout)
    assert {each["name"] for each in data["pictures"][0]["top"]} == set(names)
    assert r"model       \x1b[31m, 3 class names" in resnet("info", path).stdout


def test_unwritable_sheets_and_missing_things_are_one_sentence(
    resnet: Callable[..., Result], checkpoint: Path, picture: Callable[[str], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture("colour.jpg"))
    for arguments, said in (
        ((checkpoint, tmp_path / "a.jpg", "--sheet", tmp_path), "cannot be written"),
        (
            (checkpoint, tmp_path / "a.jpg", "--sheet", tmp_path / "a.jpg" / "b"),
            "cannot be written",
        ),
        ((checkpoint, tmp_path / "a.jpg", "--sheet", tmp_path / "s.xyz"), "ends in .png"),
        ((checkpoint, tmp_path, "--sheet", tmp_path / "a.jpg"), "would replace what this command"),
        ((checkpoint, tmp_path / "a.jpg", "--sheet", checkpoint), "would replace what this"),
        ((checkpoint, tmp_path / "none.jpg"), "none.jpg does not exist; give a picture"),
        ((tmp_path / "none.pt", tmp_path / "a.jpg"), "none.pt does not exist"),
        ((tmp_path / "a.jpg", tmp_path / "a.jpg"), "a.jpg is no file of weights"),
        ((checkpoint, tmp_path / "a.jpg", "--engine", "teco"), "--engine teco takes ONNX files"),
    ):
        told = resnet("predict", *arguments, "--device", "cpu")
        assert told.exit_code in (1, 2), arguments
        assert said in told.stderr, (arguments, told.stderr)
        assert told.stderr.count("error:") == 1


# --- the sheet --------------------------------------------------------------------------------


def shown(count: int) -> list[Shown]:
    found = []
    for number in range(count):
        top = tuple(((number + place) % 7, 0.5 / (place + 1)) for place in range(5))
        known = (None, number % 7, (number + 3) % 7, (number + 6) % 7)[number % 4]
        bad = Prediction(path=Path(f"bad-{number}.jpg"), problem="it is no picture " * 9)
        good = Prediction(path=Path(f"{'a long name ' * number}.jpg"), top=top)
        found.append(Shown(prediction=bad if number % 5 == 4 else good, known=known))
    return found


@pytest.mark.parametrize("count", [1, COLUMNS, 23])
def test_nothing_on_a_sheet_overlaps_or_leaves_it(count: int) -> None:
    names = ["x", "American Staffordshire terrier " * 3, *"abcde"]
    page, places = plan_sheet(shown(count), names.__getitem__, "best.pt: resnet18")
    assert len(places) == count
    boxes = [(left, top, left + 152, top + 152) for left, top in places]
    for label in page.labels:
        face = page.typeface(label.style.size)
        right = label.left + face.width(label.text)
        assert face.width(label.text) <= label.width
        boxes.append((label.left, label.top, right, label.top + face.height))
    for left, top, right, bottom in boxes:
        assert 0 < left <= right < page.width
        assert 0 < top < bottom < page.height
    for at, one in enumerate(boxes):
        for other in boxes[at + 1 :]:
            apart = (
                one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            )
            assert apart, (one, other)


def test_a_sheet_says_what_is_right(tmp_path: Path) -> None:
    found = shown(12)
    page, _ = plan_sheet(found, lambda index: f"class {index}", "title")
    texts = [label.text for label in page.labels]
    assert texts[0] == "title"
    assert texts[1].split("  ·  ") == [
        "12 pictures",
        "2 of 8 right",
        "3 more among the first 5",
        "2 without an answer",
    ]
    grey = np.full((9, 9, 3), 128, np.uint8)
    write_sheet(
        tmp_path / "s.png",
        found,
        lambda index: f"class {index}",
        "title",
        pixels=lambda _: grey,
        progress=Silent(),
    )
    data = (tmp_path / "s.png").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    assert {(42, 157, 85), (206, 62, 52), (226, 163, 26)} <= colours
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]
