"""Random access to a split: `dataset[number]` for PyTorch's DataLoader, samplers, notebooks.

It stands where torchvision's ImageFolder does: the same pictures to the last bit, since Pillow
decodes them, the same labels, and `classes`, `class_to_idx`, `targets` under the same names.
It needs no class folders, and there are no Python objects for each sample: they would be copied
page by page into every worker that touches them.

`shards.loader.Loader` is several times faster and resumes at any step; this is for code that
brings its own loading.
"""

from __future__ import annotations

import contextlib
import io
import operator
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards.dataset import Dataset
from shards.errors import DamagedData, UsageError

Transform = Callable[[Image.Image], Any]


class ShardDataset:
    """The samples of a split in key order, or a part of them.

    It may be pickled, and handed to workers that are forked or spawned: it opens its files again
    wherever it arrives, and refuses a split whose samples are others by then.

    Attributes:
        transform: what is made of each picture; None leaves it a PIL RGB image.
        classes: class ids (WordNet ids or folder names) of the whole split. A label is a
            position in it, whichever part of the split this is.
        class_to_idx: the label of each class id.
        targets: int32, shape (len(self),): the labels; -1 in a split without labels.
        keys: bytes, shape (len(self),): the samples' keys, ascending unless they were picked in
            another order.
    """

    def __init__(
        self,
        folder: Path | str,
        transform: Transform | None = None,
        *,
        classes: Iterable[str] | None = None,
        keys: Iterable[str | bytes] | None = None,
        blocked: Iterable[str | bytes] | None = None,
    ) -> None:
        """Open the folder of a split, made by `imagenet-prep shard` or `imagenet-prep index`.

        `classes` and `keys` are ids and keys to keep, `blocked` are keys to leave out; together
        they narrow each other. Labels stay what they are.

        Raises UsageError for an id or a key that the split does not have, and what
        `Dataset.open` raises.
        """
        dataset = _Opened.open(Path(folder).absolute())
        self.transform = transform
        self._hold(dataset)
        kept = np.ones(len(dataset), np.bool_)
        if classes is not None:
            kept &= np.isin(dataset.labels, _labels_of(dataset, classes))
        if keys is not None:
            kept &= np.isin(self._numbers, _numbers_of(dataset, keys))
        if blocked is not None:
            kept[_numbers_of(dataset, blocked)] = False
        if not kept.all():
            self._select(kept)

    def _hold(self, dataset: Dataset) -> None:
        """Be all samples of a split."""
        self._dataset = dataset
        self._numbers = np.arange(len(dataset), dtype=np.uint32)  # canonical
        self.classes = list(dataset.classes)
        self.class_to_idx = {name: label for label, name in enumerate(dataset.classes)}
        self.targets = dataset.labels
        self.keys = dataset.keys

    def _select(self, rows: slice | npt.NDArray[Any]) -> None:
        """Narrow to some of the samples: rows of them, or a mask."""
        self._numbers = self._numbers[rows]
        self.targets = self.targets[rows]
        self.keys = self.keys[rows]

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, rows: int) -> tuple[Any, int]: ...

    @overload
    def __getitem__(self, rows: slice | Sequence[int] | npt.NDArray[Any]) -> ShardDataset: ...

    def __getitem__(
        self, rows: int | slice | Sequence[int] | npt.NDArray[Any]
    ) -> tuple[Any, int] | ShardDataset:
        """A sample: (picture, label). Of a slice, of numbers or of a mask: that part as a dataset.

        Raises IndexError beyond the samples, and DamagedData, naming shard, key and offset, for
        a picture that cannot be decoded.
        """
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            if rows.ndim == 0:
                return self._sample(operator.index(rows[()]))
            if not rows.size:
                rows = np.zeros(0, np.int64)  # an empty list has no type of its own
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._select(rows)
        return part

    def _sample(self, row: int) -> tuple[Any, int]:
        number = int(self._numbers[row])
        picture = self._picture(number)
        return (
            picture if self.transform is None else self.transform(picture),
            int(self.targets[row]),
        )

    def _picture(self, number: int) -> Image.Image:
        try:
            encoded = self._dataset.read(number)
            return _decode(encoded.data, (encoded.info.width, encoded.info.height))
        except DamagedData as error:
            raise DamagedData(f"{self._dataset.describe(number)}: {error}") from None

    def describe(self, row: int) -> str:
        """Where a sample lies: shard, key, offset."""
        return self._dataset.describe(int(self._numbers[row]))

    def __repr__(self) -> str:
        return f"ShardDataset({str(self._dataset.folder)!r}): {len(self)} samples"

    def __getstate__(self) -> dict[str, Any]:
        return {
            "folder": self._dataset.folder,
            "digest": self._dataset.digest,
            "numbers": self._numbers,
            "transform": self.transform,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        dataset = _Opened.open(state["folder"])
        if dataset.digest != state["digest"]:
            raise DamagedData(
                f"{state['folder']} holds other samples than when this dataset was opened; "
                "open it anew"
            )
        self.transform = state["transform"]
        self._hold(dataset)
        if not np.array_equal(self._numbers, state["numbers"]):
            self._select(state["numbers"])

    def close(self) -> None:
        """Close the shards, for all parts of this dataset too; reading opens them again."""
        self._dataset.close()


class _Opened(Dataset):
    """A split that closes its shards when no part of it is in use any more."""

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was never opened
            self.close()


def _labels_of(dataset: Dataset, classes: Iterable[str]) -> list[int]:
    labels = {name: label for label, name in enumerate(dataset.classes)}
    wanted = list(classes)
    unknown = next((name for name in wanted if name not in labels), None)
    if unknown is not None:
        raise UsageError(
            f"{dataset.folder} has no class {unknown!r}; it has {len(labels)}, such as "
            f"{', '.join(dataset.classes[:3])}"
        )
    return [labels[name] for name in wanted]


def _numbers_of(dataset: Dataset, keys: Iterable[str | bytes]) -> npt.NDArray[np.int64]:
    """Canonical numbers of keys. They are sorted, so each is found by halving."""
    wanted = [key.encode() if isinstance(key, str) else bytes(key) for key in keys]
    numbers = np.searchsorted(dataset.keys, np.array(wanted, np.bytes_))
    for key, number in zip(wanted, numbers.tolist(), strict=True):
        if number == len(dataset) or dataset.keys[number] != key:
            raise UsageError(
                f"{dataset.folder} has no sample {key.decode(errors='replace')!r}; it has "
                f"{len(dataset)}, such as {b', '.join(dataset.keys[:3].tolist()).decode()}"
            )
    return numbers


def _decode(data: bytearray, size: tuple[int, int]) -> Image.Image:
    """A picture as torchvision's ImageFolder gives it. The index says its width and height."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.size != size:  # told before it is decoded, so that a lie costs no memory
                raise DamagedData(
                    f"it has {image.width} x {image.height} pixels, the index says "
                    f"{size[0]} x {size[1]}"
                )
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedData(f"it cannot be decoded ({error})") from None
