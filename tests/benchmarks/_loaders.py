"""Loaders of others, each in the form its documentation recommends for a CPU.

`python _loaders.py NAME SPEC` runs one of them in a process of its own, under whichever Python
has it; SPEC and the answer are those of `_measured.py`. All make the same: RandomResizedCrop
(scale 0.08 - 1, ratio 3/4 - 4/3, antialiased bilinear) and mirroring with probability 1/2, in
uint8 batches, from shuffled files on disk. What a peer's own documentation does otherwise is
said at its function. ffcv is not among them: pip cannot build it without OpenCV's headers.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _measured import Spec, imported, measure

SCALE, RATIO, FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5
BUFFER = 1000  # samples a shuffle buffer holds, where there is one
# Batches that wait, of each worker where there are any: what torch's DataLoader has. With litdata's
# 10, a short epoch would be ready before half of it has been handed out.
AHEAD = 2


# --- torch's DataLoader ---


def cropped(size: int) -> Callable[[Any], Any]:
    """torchvision's transform of a PIL picture."""
    from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

    return Compose([RandomResizedCrop(size, SCALE, RATIO), RandomHorizontalFlip(FLIP)])


def collated(samples: Sequence[tuple[Any, int]]) -> tuple[Any, Any]:
    """PIL pictures to one uint8 batch (n, size, size, 3), as the usual `fast_collate` does."""
    import torch

    batch = np.stack([np.asarray(picture, np.uint8) for picture, _ in samples])
    return torch.from_numpy(batch), torch.tensor([label for _, label in samples])


def decoded(data: bytes) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def decoding(size: int, samples: Sequence[dict[str, Any]]) -> tuple[Any, Any]:
    """Encoded samples to a batch, in the worker that read them."""
    transform = cropped(size)
    return collated([(transform(decoded(each["image"])), each["label"]) for each in samples])


def decoding_tensors(size: int, samples: Sequence[dict[str, Any]]) -> tuple[Any, Any]:
    """The same with torchvision.io's decoder: a batch (n, 3, size, size)."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    transform = cropped_tensors(size)
    encoded = [torch.frombuffer(bytearray(each["image"]), dtype=torch.uint8) for each in samples]
    images = [transform(decode_image(each, ImageReadMode.RGB)) for each in encoded]
    return torch.stack(images), torch.tensor([each["label"] for each in samples])


def sizes(batches: Any) -> Iterator[int]:
    return (len(batch[1]) for batch in batches)


def torchvision(spec: Spec) -> Iterator[int]:
    """ImageFolder, PIL. `listed` repeats its list: what a set of that size costs in memory."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    imported()
    dataset = ImageFolder(spec.data, cropped(spec.size))
    if spec.listed:
        endless = itertools.cycle(dataset.samples)
        dataset.samples = [
            (f"{path[:-5]}.JPEG", label) for path, label in itertools.islice(endless, spec.listed)
        ]
    return sizes(
        DataLoader(dataset, spec.batch, shuffle=True, num_workers=spec.workers, collate_fn=collated)
    )


def cropped_tensors(size: int) -> Callable[[Any], Any]:
    """torchvision's transform of a uint8 tensor."""
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(size, SCALE, RATIO, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(FLIP)])


def torchvision_tensors(spec: Spec) -> Iterator[int]:
    """ImageFolder, torchvision.io's decoder and the v2 transforms on uint8 tensors."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image

    imported()
    load = functools.partial(decode_image, mode=ImageReadMode.RGB)
    dataset = ImageFolder(spec.data, cropped_tensors(spec.size), loader=load)
    return sizes(DataLoader(dataset, spec.batch, shuffle=True, num_workers=spec.workers))


def timm(spec: Spec) -> Iterator[int]:
    """create_loader up to its uint8 batches: what follows normalises them on the device."""
    import torch
    from timm.data import create_dataset, create_loader

    imported()
    loader = create_loader(
        create_dataset("", root=spec.data, is_training=True),
        spec.size,
        spec.batch,
        is_training=True,
        scale=SCALE,
        ratio=RATIO,
        hflip=FLIP,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=spec.workers,
        device=torch.device("cpu"),
    )
    return sizes(loader.loader)


def webdataset(spec: Spec) -> Iterator[int]:
    """WebLoader; to resume, the samples before are read and passed over, as it cannot seek."""
    import webdataset

    imported()
    transform = cropped(spec.size)

    def picture(sample: tuple[Any, int]) -> tuple[Any, int]:
        return transform(sample[0].convert("RGB")), sample[1]

    urls = sorted(map(str, Path(spec.data).rglob("*.tar")))
    stream = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False)
    if spec.skip:
        stream = stream.slice(spec.skip // spec.workers, sys.maxsize)
    stream = stream.shuffle(BUFFER).decode("pil").to_tuple("jpg;png", "cls")
    stream = stream.map(picture).batched(spec.batch, collation_fn=collated)
    return sizes(webdataset.WebLoader(stream, batch_size=None, num_workers=spec.workers))


def streaming(spec: Spec) -> Iterator[int]:
    """MosaicML's StreamingDataset on local MDS shards; resumes by its state."""
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    imported()
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=spec.data, shuffle=True, batch_size=spec.batch)
    loader = StreamingDataLoader(
        dataset,
        batch_size=spec.batch,
        num_workers=spec.workers,
        collate_fn=functools.partial(decoding, spec.size),
    )
    if spec.skip:
        loader.load_state_dict(dataset.state_dict(spec.skip, from_beginning=True))
    return sizes(loader)


def litdata(spec: Spec) -> Iterator[int]:
    """StreamingDataset on local chunks; decoded as its own JPEG serializer does, to tensors."""
    from litdata import StreamingDataLoader, StreamingDataset

    imported()
    loader = StreamingDataLoader(
        StreamingDataset(spec.data, shuffle=True),
        batch_size=spec.batch,
        num_workers=spec.workers,
        prefetch_factor=AHEAD,
        collate_fn=functools.partial(decoding_tensors, spec.size),
    )
    return sizes(loader)


# --- pipelines of their own ---


def dali(spec: Spec) -> Iterator[int]:
    """All on the CPU; image_random_crop decodes the part that the crop needs."""
    from nvidia.dali import fn, pipeline_def, types

    imported()

    @pipeline_def(batch_size=spec.batch, num_threads=spec.workers, device_id=None, seed=0)
    def pipeline() -> tuple[Any, Any]:
        encoded, labels = fn.readers.file(
            file_root=spec.data, random_shuffle=True, initial_fill=BUFFER
        )
        images = fn.decoders.image_random_crop(
            encoded,
            device="cpu",
            output_type=types.RGB,
            random_area=SCALE,
            random_aspect_ratio=RATIO,
            num_attempts=10,
        )
        images = fn.resize(
            images,
            resize_x=spec.size,
            resize_y=spec.size,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        return fn.flip(images, horizontal=fn.random.coin_flip(probability=FLIP)), labels

    built = pipeline()
    built.build()
    while True:
        images, _ = built.run()
        yield images.as_tensor().shape()[0]


def spdl(spec: Spec) -> Iterator[int]:
    """Threads; FFmpeg decodes, crops, resizes (its bilinear is antialiased) and mirrors."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    imported()
    paths = listed(spec)
    random.shuffle(paths)

    def load(path: str) -> Any:
        packets = spdl.io.demux_image(path)
        top, left, height, width = drawn(packets.width, packets.height)
        steps = f"crop={width}:{height}:{left}:{top}:exact=1"
        steps += f",scale={spec.size}:{spec.size}:flags=bilinear"
        steps += ",hflip" if random.random() < FLIP else ""
        return spdl.io.decode_packets(
            packets, filter_desc=spdl.io.get_video_filter_desc(filter_desc=steps)
        )

    def together(frames: list[Any]) -> Any:
        return spdl.io.to_numpy(spdl.io.convert_frames(frames))

    builder = PipelineBuilder().add_source(paths).pipe(load, concurrency=spec.workers)
    builder = builder.aggregate(spec.batch).pipe(together).add_sink(AHEAD)
    pipeline = builder.build(num_threads=spec.workers)
    with pipeline.auto_stop():
        for batch in pipeline.get_iterator():
            yield len(batch)


def grain(spec: Spec) -> Iterator[int]:
    """MapDataset in worker processes; pictures by PIL, as it has no decoder of its own."""
    import grain
    from PIL import Image

    imported()
    size = (spec.size, spec.size)

    def load(path: str, rng: np.random.Generator) -> Any:
        with Image.open(path) as image:
            top, left, height, width = drawn(*image.size, rng.random)
            box = (left, top, left + width, top + height)
            picture = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, box)
        pixels = np.asarray(picture)
        return pixels[:, ::-1] if rng.random() < FLIP else pixels

    dataset = grain.MapDataset.source(listed(spec)).seed(0).shuffle().random_map(load)
    options = grain.MultiprocessingOptions(num_workers=spec.workers, per_worker_buffer_size=1)
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=spec.batch)
    batches = dataset.to_iter_dataset(reading).batch(spec.batch, batch_fn=np.stack)
    return (len(batch) for batch in batches.mp_prefetch(options))


def tensorflow(spec: Spec) -> Iterator[int]:
    """tf.data with decode_and_crop_jpeg and sample_distorted_bounding_box, as its guide does."""
    import tensorflow as tf

    imported()
    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])

    def load(path: Any) -> Any:
        data = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            whole,
            min_object_covered=0.0,
            aspect_ratio_range=RATIO,
            area_range=SCALE,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        box = tf.concat([begin[:2], extent[:2]], 0)
        pixels = tf.image.decode_and_crop_jpeg(data, box, channels=3)
        pixels = tf.image.resize(pixels, [spec.size, spec.size], antialias=True)
        pixels = tf.cast(tf.clip_by_value(tf.round(pixels), 0.0, 255.0), tf.uint8)
        return tf.image.random_flip_left_right(pixels)

    paths = listed(spec)
    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths))
    options = tf.data.Options()
    options.threading.private_threadpool_size = spec.workers
    dataset = dataset.map(load, num_parallel_calls=spec.workers, deterministic=False)
    dataset = dataset.batch(spec.batch).prefetch(AHEAD).with_options(options)
    return (batch.shape[0] for batch in dataset)


def listed(spec: Spec) -> list[str]:
    return sorted(map(str, Path(spec.data).rglob("*.JPEG")))


def drawn(
    width: int, height: int, uniform: Callable[[], float] = random.random
) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop: top, left, height, width."""
    for _ in range(10):
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * uniform())
        aspect = RATIO[0] * (RATIO[1] / RATIO[0]) ** uniform()
        across, down = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < across <= width and 0 < down <= height:
            top = int(uniform() * (height - down + 1))
            return top, int(uniform() * (width - across + 1)), down, across
    across = min(width, round(height * RATIO[1]))
    down = min(height, round(width / RATIO[0]))
    return (height - down) // 2, (width - across) // 2, down, across


PEERS: dict[str, Callable[[Spec], Iterator[int]]] = {
    each.__name__: each
    for each in (
        torchvision,
        torchvision_tensors,
        timm,
        webdataset,
        streaming,
        litdata,
        dali,
        spdl,
        grain,
        tensorflow,
    )
}


if __name__ == "__main__":
    given = Spec(**json.loads(sys.argv[2]))
    measure(PEERS[sys.argv[1]], given)
