"""The page of a report: what it says of a run, whatever the log and the names in it are like."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from PIL import Image

from cli import resnet
from shards.dataset import Dataset
from shards.errors import DamagedData, ToolError, UsageError
from training.report.curves import figures_of
from training.report.history import read_runs
from training.report.predictions import read_predictions
from training.report.report import write_report

HOSTILE = "<script>alert(1)</script> & \"'$x^2$_"
STEPS = 40  # an epoch of the logs made here
Line = dict[str, Any]


def history(epochs: int = 3, **config: object) -> list[Line]:
    """The lines of a run as training writes them: an epoch takes 1000 seconds."""
    values = {"model": "resnet18", "epochs": epochs, "lr": 0.1, "recipe": {"name": "seed"}}
    start = {
        "device": "cpu",
        "device_reason": "asked for",
        "precision": "fp32",
        "plan": {"steps_per_epoch": STEPS, "world": 1},
        "config": values | config,
        "data": {"train": "ab" * 32, "val": "cd" * 32},
        "versions": {"torch": "2.7.1"},
    }
    lines: list[Line] = [{"kind": "start", "time": 0.0, "epoch": 0, "step": 0, **start}]
    for epoch in range(epochs):
        for step in range(10, STEPS + 1, 10):
            place = {"epoch": epoch, "step": step, "time": 1000.0 * (epoch + step / STEPS)}
            values = {"steps": 10, "loss": 2.0 / (epoch + step / STEPS), "lr": 0.1 - epoch / 100}
            speed = {"images_per_second": 100.0 * (epoch + 1), "wait_share": 0.25}
            memory = {"peak_memory": 2_000_000_000, "loss_scale": None}
            lines.append({"kind": "step", **place, **values, **speed, **memory})
        after = {"epoch": epoch + 1, "step": 0, "time": 1000.0 * (epoch + 1)}
        found = {"top1": 50.0 + 10 * epoch, "top5": 80.0 + epoch, "loss": 1.5 - epoch / 10}
        lines.append({"kind": "eval", **after, **found, "ema": None, "best": True})
    over = {"epoch": epochs, "step": 0, "time": 1000.0 * epochs}
    return [*lines, {"kind": "end", **over, "reason": "finished"}]


def write_run(folder: Path, lines: Iterable[Mapping[str, Any]], torn: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text + torn)
    return folder


class Elements(HTMLParser):
    """The elements of a page, and the text in it; every one that is opened must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "img"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["script"] and self._open[-1:] != ["style"]:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two whole runs that differ, and one under way whose name is an attack."""
    pytest.importorskip("matplotlib")
    place = tmp_path_factory.mktemp("runs")
    better = history(epochs=4, lr=0.2, model=HOSTILE)
    for line in better:
        if line["kind"] == "eval":
            line["ema"] = {"top1": line["top1"] + 5, "top5": 90.0, "loss": 1.0}
    return [
        write_run(place / "plain", history()),
        write_run(place / "averaged", better),
        write_run(place / HOSTILE.replace("/", "∕"), history()[:6], torn='{"kind": "st'),  # noqa: RUF001
    ]


@pytest.fixture(scope="module")
def report(runs: list[Path]) -> Path:
    out = runs[0].parent / "report.html"
    write_report(runs, out, png=runs[0].parent / "report.png")
    return out


def test_the_page_shows_every_run_and_needs_nothing_else(report: Path) -> None:
    page = Elements(report.read_text())
    assert [each.get("class") for each in page.named("div")].count("by-epoch") == 7
    assert len(page.named("figure")) == 7
    for words in ("70.00 %", "85.00 %", "epoch 4", "finished", "under way, or cut off"):
        assert words in page.text, words
    assert "2.7.1" in page.text
    sources = [each.get(key) for _, each in page.found for key in ("src", "href", "xlink:href")]
    assert all(place.startswith(("#", "data:")) for place in sources if place)
    (policy,) = [each["content"] for each in page.named("meta") if "http-equiv" in each]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "url(http" not in report.read_text()


def test_figures_say_what_is_to_be_known_of_them(report: Path, runs: list[Path]) -> None:
    """Of averaged weights only where a run has some, and of a logarithmic axis where it is one."""
    lines = history()
    lines[1]["loss"] = 100.0
    steep = write_run(runs[0].parent / "steep", lines)
    write_report([steep], steep / "report.html")
    alone, all_of_them = Elements((steep / "report.html").read_text()), Elements(report.read_text())
    assert "not averaged weights" in all_of_them.text
    assert "not averaged weights" not in alone.text
    assert "validation; logarithmic" in alone.text
    assert "0:50:00" in alone.text


def test_names_are_text_wherever_they_come_from(report: Path) -> None:
    page = Elements(report.read_text())
    assert len(page.named("script")) == 2  # the data and the page's own
    assert HOSTILE in page.text  # the model, in the tables
    (data,) = re.findall(r'id="report">(.*?)</script>', report.read_text())
    assert json.loads(data)["runs"][2].startswith("<script>")


def test_what_differs_between_runs_is_in_front(report: Path) -> None:
    rows = re.findall(r'<tr class="differs"><th[^>]*>(.*?)</th>', report.read_text())
    assert {"model", "epochs", "lr"} <= set(rows)
    assert "recipe: name" not in rows


def test_the_same_logs_give_the_same_page(
    runs: list[Path], report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again.html"
    arguments = ["report", *map(str, runs), "--out", str(again), "--json"]
    resnet.main(arguments, standalone_mode=False)
    assert again.read_bytes() == report.read_bytes()
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == again.stat().st_size
    assert found["runs"][:2] == ["plain", "averaged"]
    assert len(found["figures"]) == 7


def test_the_sheet_of_curves_is_a_png(report: Path) -> None:
    with Image.open(report.with_suffix(".png")) as image:
        assert image.format == "PNG"
        assert image.width == 2400
        colours = image.convert("RGB").resize((300, 200)).getcolors(60_000)
        assert colours is not None
        assert len(colours) > 50


def test_a_curve_of_many_lines_is_their_mean(tmp_path: Path) -> None:
    step = {"kind": "step", "epoch": 0, "steps": 10, "lr": 0.1}
    speeds = (100.0, 300.0)  # as much work at each: 150 images a second in all
    lines = [
        {**step, "time": float(at), "step": at, "loss": at % 2, "images_per_second": speeds[at % 2]}
        for at in range(10_000)
    ]
    figures = figures_of(read_runs([write_run(tmp_path / "run", lines)]))
    values = {figure.plot.title: figure.series[0].values for figure in figures}
    assert 100 < len(values["Loss"]) <= 240
    assert values["Loss"] == pytest.approx([0.5] * len(values["Loss"]))
    assert values["Speed"] == pytest.approx([150.0] * len(values["Speed"]))


def test_time_between_a_stop_and_the_next_start_does_not_count(tmp_path: Path) -> None:
    lines = history(epochs=2)
    again = [{**line, "time": line["time"] + 50_000.0} for line in lines if line["epoch"] >= 1]
    before = [line for line in lines if line["epoch"] < 1]
    start = {**lines[0], "epoch": 1, "time": 51_000.0}
    (run,) = read_runs([write_run(tmp_path / "run", [*before, start, *again])])
    assert (run.starts, run.state) == (2, "finished")
    assert run.hours == pytest.approx(2000 / 3600)
    assert [point.epoch for point in run.evals] == [1, 2]


@pytest.mark.parametrize(
    "strange",
    [
        {"loss": None},
        {"loss": "high", "lr": True, "images_per_second": 10**400},
        {"kind": "weather", "sky": ["blue"]},
        {"epoch": "late"},
        {"time": None},
        {"steps": 0, "images_per_second": 0},
    ],
)
def test_values_that_are_none_leave_a_gap(tmp_path: Path, strange: Line) -> None:
    lines = history()
    lines[2] = lines[2] | strange
    figures = figures_of(read_runs([write_run(tmp_path / "run", lines)]))
    (loss,) = [figure for figure in figures if figure.plot.title == "Loss"]
    assert len(loss.series[0].values) == 12 - ("steps" not in strange)


def test_a_log_of_nothing_yet_is_a_page_too(tmp_path: Path) -> None:
    found = write_report([write_run(tmp_path / "run", [])], tmp_path / "a.html")
    assert found.figures == ()
    assert "Nothing has been logged yet." in Elements(found.out.read_text()).text


@pytest.mark.parametrize("line", ["hello", "[1]", '{"kind": "step"', "[" * 100_000])
def test_what_is_no_log_is_refused_by_its_line(tmp_path: Path, line: str) -> None:
    folder = write_run(tmp_path / "run", history()[:2], torn=f"{line}\n")
    with pytest.raises(DamagedData, match=r"log\.jsonl, line 3, is not a line"):
        read_runs([folder])


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"log\.jsonl does not exist"):
        write_report([tmp_path], tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


def test_a_place_that_takes_no_file_is_refused_before_anything_is_drawn(
    runs: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "a.html"):
        with pytest.raises(UsageError, match="cannot be written"):
            write_report(runs, tmp_path / "a.html", png=place)
    assert not (tmp_path / "a.html").exists()


def test_a_page_replaces_nothing_that_it_is_made_of(runs: list[Path], tmp_path: Path) -> None:
    page, log, answers = tmp_path / "a.html", runs[0] / "log.jsonl", tmp_path / "p.jsonl"
    answers.touch()
    kept = log.read_bytes()
    for out, png in ((log, None), (page, log), (page, page), (answers, None)):
        with pytest.raises(UsageError, match="would replace"):
            write_report(runs, out, png=png, predictions=[answers])
    assert log.read_bytes() == kept
    assert not page.exists()


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name / "run", history(1)) for name in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == ["a/run", "b/run"]
    assert [run.name for run in read_runs([paths[0] / "log.jsonl"])] == ["run"]
    assert len({run.name for run in read_runs([paths[0], paths[0]])}) == 2


def test_a_missing_extra_is_one_sentence(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ToolError, match=r"pip install 'imagenet-resnet\[report\]'"):
        write_report(runs, tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


# --- predictions ------------------------------------------------------------------------------


@pytest.fixture
def predict(shards: Path, tmp_path: Path) -> Callable[..., Path]:
    """A file of predictions for the validation images: all right but those of class 0."""

    def write(header: Line | None = None, rows: Callable[[Line], Line] = dict) -> Path:
        with Dataset.open(shards / "val") as dataset:
            first: Line = {"kind": "header", "path": "runs/best.pt", "split": "val"}
            first |= {"classes": dataset.classes, "class_names": ["crane", "crane", HOSTILE]}
            lines = [first | (header or {})]
            for number, (key, label) in enumerate(zip(dataset.keys, dataset.labels, strict=True)):
                answer = int(label) or 2
                top = [[answer, 0.5 + number / 100], [1 - answer // 2, 0.25]]
                lines.append(rows({"key": key.decode(), "label": int(label), "top": top}))
        path = tmp_path / "predictions.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def test_predictions_are_counted(predict: Callable[..., Path]) -> None:
    found = read_predictions(predict(), mistakes=2)
    assert (found.samples, found.correct) == (15, 10)
    assert [each.accuracy for each in found.per_class] == [0, 100, 100]
    (pair,) = found.pairs
    assert (pair.count, pair.samples, pair.taken_for) == (5, 5, HOSTILE)
    assert pair.name.startswith("crane (n")  # two classes have that name
    assert found.model == "runs/best.pt"
    assert len(found.mistakes) == 2
    first, second = found.mistakes
    assert first.taken_for_probability > second.taken_for_probability


def test_mistakes_are_shown_with_their_pictures(
    runs: list[Path], predict: Callable[..., Path], shards: Path, tmp_path: Path
) -> None:
    found = write_report(
        runs[:1], tmp_path / "a.html", predictions=[predict()], shards=shards, mistakes=3
    )
    page = Elements(found.out.read_text())
    pictures = [each["src"] or "" for each in page.named("img")]
    assert found.pictures == len(pictures) == 3
    assert all(place.startswith("data:image/jpeg;base64,/9j/") for place in pictures)
    assert HOSTILE in page.text


def test_a_network_without_probabilities_is_only_wrong(predict: Callable[..., Path]) -> None:
    path = predict(None, lambda line: line | {"top": [[0, None], [1, None]]})
    assert read_predictions(path, mistakes=2).correct == 5


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ({"kind": "head"}, {}),
        ({"classes": "abc"}, {}),
        ({"classes": [1, 2, 3]}, {}),
        ({"split": "../val"}, {}),
        ({"split": "/etc"}, {}),
        ({}, {"label": 3}),
        ({}, {"label": 0.5}),
        ({}, {"top": []}),
        ({}, {"top": [[7, 0.5]]}),
        ({}, {"top": [[-1, 0.5]]}),
        ({}, {"top": [[0, "much"]]}),
        ({}, {"top": [[0, float("nan")]]}),
        ({}, {"key": None}),
    ],
)
def test_other_files_than_predictions_are_refused(
    predict: Callable[..., Path], header: Line, row: Line
) -> None:
    path = predict(header, lambda line: line | row)
    with pytest.raises(DamagedData, match=r"line [12], is not what `resnet eval"):
        read_predictions(path, mistakes=1)


def test_predictions_of_other_shards_are_refused(
    runs: list[Path], predict: Callable[..., Path], shards: Path, tmp_path: Path
) -> None:
    others = predict({"classes": ["a", "b", "c"]})
    with pytest.raises(UsageError, match="give the shards that were evaluated"):
        write_report(runs, tmp_path / "a.html", predictions=[others], shards=shards)
    renamed = predict(None, lambda line: line | {"key": "elsewhere"})
    with pytest.raises(UsageError, match="names the image 'elsewhere'"):
        write_report(runs, tmp_path / "a.html", predictions=[renamed], shards=shards)
    with pytest.raises(UsageError, match="--predictions"):
        write_report(runs, tmp_path / "a.html", shards=shards)
    assert not (tmp_path / "a.html").exists()


# --- in a browser -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (360, False)])
def test_a_browser_shows_it_without_complaint(
    runs: list[Path],
    predict: Callable[..., Path],
    shards: Path,
    tmp_path: Path,
    width: int,
    dark: bool,
) -> None:
    executable = find_browser()
    if executable is None:
        pytest.skip("there is no Chromium")
    page = tmp_path / "report.html"
    write_report(runs, page, predictions=[predict()], shards=shards)
    with Browser(executable, tmp_path / "profile") as browser:
        browser.look(width=width, dark=dark)
        browser.open(page)
        shown = (
            "[...document.querySelectorAll('figure svg')].map(each => each.getBoundingClientRect())"
            ".filter(box => box.width > 250 && box.height > 140).length"
        )
        assert browser.evaluate(shown) == 7
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("[...document.images].every(each => each.naturalWidth > 0)")
        colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 384) == dark
        browser.evaluate("document.querySelector('[for=by-time]').click()")
        assert browser.evaluate(shown) == 7
        check_values_under_the_pointer(browser)
        browser.evaluate("document.querySelector('[data-toggle=\"1\"]').click()")
        hidden = "[...document.querySelectorAll('.run[data-run=\"1\"]')].every(each => "
        assert browser.evaluate(hidden + "each.getBoundingClientRect().width === 0)")
        assert browser.complaints == []
        assert browser.requests[0] == page.as_uri()
        assert all(place.startswith("data:") for place in browser.requests[1:])


def check_values_under_the_pointer(browser: Browser) -> None:
    """Beside the last evaluation of a run stands its accuracy."""
    browser.evaluate("document.querySelectorAll('figure')[1].scrollIntoView({block: 'center'})")
    box = json.loads(
        browser.evaluate(
            "JSON.stringify(document.querySelectorAll('figure')[1]"
            ".querySelector('.by-time svg').getBoundingClientRect())"
        )
    )
    # The end of the first run: 50 of the axis' 66.7 minutes and their margin of 5 %.
    at = 46 + 344 * 50 / (66.67 + 0.05 * 66.67 * 3 / 4)
    browser.point_at(box["x"] + box["width"] * at / 400, box["y"] + box["height"] / 2)
    told = browser.evaluate("document.getElementById('tip').innerText")
    assert "plain" in told
    assert "70 %" in told
