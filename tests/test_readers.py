"""Our shards in the hands of others: each reader finds every image, its own bytes and its label.

What is true is taken from the sources, not from our index. Readers that are heavy to install are
the extra `readers`, which `make test-all` installs. tests/shards/test_webdataset.py has more.
"""

from __future__ import annotations

import gc
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from PIL import Image

from prep import ilsvrc
from shards.sidecars import WIDS_NAME

ROOT = Path(__file__).parent.parent
LABELS = (0, 7, 42, 999)  # of one, two and three digits
PICTURES = ("picture.png", "grey.jpg", "progressive.jpg", "cmyk.jpg", "colour.jpg")
SPLITS = (("plain", "train"), ("plain", "val"), ("odd", "train"), ("odd", "test"))

every_split = pytest.mark.parametrize(("kind", "split"), SPLITS)
labelled_splits = pytest.mark.parametrize(("kind", "split"), SPLITS[:3])

pytestmark = pytest.mark.filterwarnings("ignore")  # others' warnings are no failures of ours


class Sample(NamedTuple):
    """What a reader must find; `label` is None where the image has none."""

    key: str
    label: int | None
    data: bytes

    def decoded(self) -> Image.Image:
        return Image.open(io.BytesIO(self.data)).convert("RGB")


class Made(NamedTuple):
    """The shards of a split, and what must be in them, sorted by key."""

    folder: Path
    samples: list[Sample]

    @property
    def tars(self) -> list[str]:
        return sorted(map(str, self.folder.glob("*.tar")))


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    build: Callable[..., object],
    picture: Callable[[str], bytes],
) -> Iterator[Callable[[str, str], Made]]:
    """Two sets: `plain` of JPEGs that all differ, for training and validation; `odd` with a PNG
    named JPEG, grey, progressive and CMYK pictures, and test images without labels.
    """
    root = tmp_path_factory.mktemp("readers")
    wnids = [each.wnid for each in ilsvrc.classes()]
    samples: dict[tuple[str, str], list[Sample]] = {each: [] for each in SPLITS}
    for label in LABELS:
        for number in range(7):
            key = f"{wnids[label]}_{number}"
            samples["plain", "train"].append(Sample(key, label, drawn(7 * label + number)))
        for number in range(3):
            key = f"ILSVRC2012_val_{3 * label + number:08}"
            samples["plain", "val"].append(Sample(key, label, drawn(5000 + 3 * label + number)))
        for number, name in enumerate(PICTURES):
            key = f"{wnids[label]}_{number}"
            samples["odd", "train"].append(Sample(key, label, picture(name)))
    for number in range(9):
        key = f"ILSVRC2012_test_{number:08}"
        samples["odd", "test"].append(Sample(key, None, drawn(6000 + number)))

    for (kind, split), images in samples.items():
        for image in images:
            folder = root / "sources" / kind / split
            folder /= "" if image.label is None else wnids[image.label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{image.key}.JPEG").write_bytes(image.data)
    listed = root / "classes.txt"
    listed.write_text("\n".join(wnids))
    for kind in ("plain", "odd"):
        build(
            root / "sources" / kind,
            out=root / kind,
            classes=listed,
            samples_per_shard=8,
            write={"for_readers": ("timm", "dali", "wids")},
        )
    yield lambda kind, split: Made(root / kind / split, sorted(samples[kind, split]))
    gc.collect()  # what libraries have left open is complained of here, not in another module


def drawn(number: int) -> bytes:
    """A JPEG whose colour and size are its own."""
    size = (16 + number % 61, 16 + number % 59)
    colour = (number % 251, number * 7 % 241, number * 11 % 239)
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], ModuleType]:
    """Import what the extra `readers` installs, without asking a hub or leaving files behind."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return lambda name: pytest.importorskip(
        name, reason=f"{name} is not installed: `make test-all` installs it"
    )


# --- in every installation ------------------------------------------------------------------------


@every_split
def test_webdataset(kind: str, split: str, made: Callable[[str, str], Made]) -> None:
    import webdataset  # it imports torch, which not every test needs

    shards = made(kind, split)
    stream = webdataset.WebDataset(shards.tars, shardshuffle=False)
    found = [
        Sample(each["__key__"], label_of(each.get("cls")), each.get("jpg") or each["png"])
        for each in stream
    ]
    assert sorted(found) == shards.samples


@every_split
def test_gnu_tar(kind: str, split: str, made: Callable[[str, str], Made], tmp_path: Path) -> None:
    if not shutil.which("tar"):
        pytest.skip("there is no tar command here")
    shards = made(kind, split)
    for tar in shards.tars:
        command = ["tar", "-C", tmp_path, "-xf", tar]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
    found = []
    for image in (*tmp_path.glob("*.jpg"), *tmp_path.glob("*.png")):
        text = image.with_suffix(".cls")
        label = label_of(text.read_bytes() if text.exists() else None)
        found.append(Sample(image.stem, label, image.read_bytes()))
    assert sorted(found) == shards.samples
    labels = sum(each.label is not None for each in found)
    assert len(list(tmp_path.iterdir())) == len(found) + labels  # and nothing else came out


# --- the extra `readers` --------------------------------------------------------------------------


def test_make_test_all_installs_the_extra() -> None:
    if not shutil.which("make"):
        pytest.skip("there is no make")
    command = ["make", "--dry-run", "test-all"]
    environment = {"PATH": os.environ["PATH"]}  # not the variables of the make that runs us
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert re.search(r" install --extras '\S+,readers'", done.stdout)


@pytest.mark.slow
@labelled_splits
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_timm(
    *,
    training: bool,
    kind: str,
    split: str,
    made: Callable[[str, str], Made],
    library: Callable[[str], ModuleType],
) -> None:
    data, shards = library("timm.data"), made(kind, split)
    dataset = data.create_dataset(
        "wds/", root=str(shards.folder.parent), split=split, is_training=training, batch_size=1
    )
    assert len(dataset) == len(shards.samples)
    # It converts every image to RGB, by the same library and so to the same pixels.
    found = [(image.size, image.tobytes(), label) for image, label in dataset]
    expected = [(each.decoded(), each.label) for each in shards.samples]
    assert sorted(found) == sorted((image.size, image.tobytes(), n) for image, n in expected)
    assert sorted(dataset.filenames()) == [f"{each.key}.JPEG" for each in shards.samples]


@pytest.mark.slow
@every_split
def test_wids(
    kind: str,
    split: str,
    made: Callable[[str, str], Made],
    library: Callable[[str], ModuleType],
    sums: Callable[[Path], dict[str, str]],
) -> None:
    wids, shards = library("wids"), made(kind, split)
    before = sums(shards.folder)
    dataset = wids.ShardListDataset(
        str(shards.folder / WIDS_NAME),
        cache_dir=str(shards.folder),  # the shards are there already: nothing is copied
        transformations=[],
    )
    found = []
    for number in range(len(dataset)):
        sample = dataset[number]
        fields = {name: value.read() for name, value in sample.items() if name.startswith(".")}
        image = fields.get(".jpg") or fields[".png"]
        found.append(Sample(sample["__key__"], label_of(fields.get(".cls")), image))
    dataset.close()
    assert sorted(found) == shards.samples
    assert sums(shards.folder) == before


@pytest.mark.slow
@every_split
def test_wids_finds_the_sums_and_counts_of_its_index_right(
    kind: str,
    split: str,
    made: Callable[[str, str], Made],
    library: Callable[[str], ModuleType],
) -> None:
    wids, shards = library("wids.wids"), made(kind, split)
    listed = json.loads((shards.folder / WIDS_NAME).read_text())["shardlist"]
    assert [str(shards.folder / each["url"]) for each in listed] == shards.tars
    for each, path in zip(listed, shards.tars, strict=True):
        assert each["filesize"] == Path(path).stat().st_size
        # Raises where the MD5 sum or the number of samples is another.
        wids.IndexedTarSamples(
            path=path, md5sum=each["md5sum"], expected_size=each["nsamples"]
        ).close()


@pytest.mark.slow
@labelled_splits
def test_dali(
    kind: str,
    split: str,
    made: Callable[[str, str], Made],
    library: Callable[[str], ModuleType],
) -> None:
    dali, shards = library("nvidia.dali"), made(kind, split)
    fn, types = dali.fn, dali.types

    def graph() -> tuple[Any, ...]:
        image, text = fn.readers.webdataset(
            paths=shards.tars,
            index_paths=[f"{tar[:-4]}.idx" for tar in shards.tars],
            ext=["jpg;png", "cls"],
            missing_component_behavior="error",
            name="reader",
        )
        # As shards/README.md says it: from the digits to the number.
        weights = types.Constant([1000, 100, 10, 1], dtype=types.INT32)
        digits = fn.cast(text - 48, dtype=types.INT32)
        label = fn.reductions.sum(digits * weights[4 - text.shape()[0] :])
        pixels = fn.decoders.image(image, device="cpu", output_type=types.RGB)
        return image, fn.get_property(image, key="source_info"), text, label, pixels.shape()

    found, shapes = [], []
    for image, place, text, label, shape in run_epoch(dali, graph):
        assert label == int(bytes(text))
        found.append(Sample(key_of(place), int(label), bytes(image)))
        shapes.append((found[-1].key, tuple(shape)))
    assert sorted(found) == shards.samples
    sizes = ((each.key, each.decoded().size) for each in shards.samples)
    assert sorted(shapes) == [(key, (height, width, 3)) for key, (width, height) in sizes]


@pytest.mark.slow
def test_dali_without_labels(
    made: Callable[[str, str], Made], library: Callable[[str], ModuleType]
) -> None:
    dali, shards = library("nvidia.dali"), made("odd", "test")

    def graph() -> tuple[Any, ...]:
        image = dali.fn.readers.webdataset(
            paths=shards.tars,
            index_paths=[f"{tar[:-4]}.idx" for tar in shards.tars],
            ext=["jpg;png"],
            missing_component_behavior="error",
            name="reader",
        )
        return image, dali.fn.get_property(image, key="source_info")

    found = [Sample(key_of(place), None, bytes(image)) for image, place in run_epoch(dali, graph)]
    assert sorted(found) == shards.samples


def run_epoch(dali: ModuleType, graph: Callable[[], tuple[Any, ...]]) -> Iterator[list[Any]]:
    """What a pipeline on the CPU puts out for each sample of an epoch, as arrays."""
    pipeline = dali.pipeline_def(graph)(batch_size=1, num_threads=2, device_id=None)
    pipeline.build()
    for _ in range(pipeline.reader_meta("reader")["epoch_size"]):
        yield [output.as_array()[0] for output in pipeline.run()]


def key_of(place: Any) -> str:
    """The key in what DALI calls the source of a sample, TAR:OFFSET:NAME."""
    return bytes(place).decode().rpartition(":")[2].partition(".")[0]


@pytest.mark.slow
@every_split
def test_dali_would_write_the_same_index_under_the_same_name(
    kind: str,
    split: str,
    made: Callable[[str, str], Made],
    library: Callable[[str], ModuleType],
    run: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    library("wds2idx")
    shards = made(kind, split)
    for tar in shards.tars:
        done = run("wds2idx", shutil.copy(tar, tmp_path))
        assert done.returncode == 0, done.stderr
    theirs = {path.name: path.read_text() for path in tmp_path.glob("*.idx")}
    ours = {path.name: path.read_text() for path in shards.folder.glob("*.idx")}
    assert len(ours) == len(shards.tars)
    assert theirs == ours


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["converted", "streamed"])
@pytest.mark.parametrize("kind", ["plain", "odd"])
def test_hugging_face_datasets(
    kind: str,
    *,
    streaming: bool,
    made: Callable[[str, str], Made],
    library: Callable[[str], ModuleType],
    tmp_path: Path,
) -> None:
    datasets = library("datasets")
    datasets.disable_progress_bars()
    features = None
    if kind == "odd":  # without them, a field that some of the images lack is dropped
        features = datasets.Features(
            {
                "__key__": datasets.Value("string"),
                "__url__": datasets.Value("string"),
                "jpg": datasets.Image(),
                "png": datasets.Image(),
                "cls": datasets.Value("int64"),
            }
        )
    splits = {split: made(kind, split) for of, split in SPLITS if of == kind}
    loaded = datasets.load_dataset(
        "webdataset",
        data_files={split: str(shards.folder / "*.tar") for split, shards in splits.items()},
        features=features,
        cache_dir=str(tmp_path / "cache"),
        streaming=streaming,
    )
    assert set(loaded) == set(splits)
    for split, shards in splits.items():
        rows = loaded[split]
        for column in {"jpg", "png"} & set(rows.features):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        found = [
            Sample(row["__key__"], row["cls"], (row["jpg"] or row["png"])["bytes"]) for row in rows
        ]
        assert sorted(found) == shards.samples


def label_of(text: bytes | None) -> int | None:
    return None if text is None else int(text)
