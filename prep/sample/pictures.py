"""Pictures that a network can learn to tell apart: a class is a texture in two colours.

Like a photograph, a picture shows its object at some place, size, angle and brightness, before
a cluttered background and partly hidden; so no single pixel tells the class, while crops and
mirroring keep it. Any class number has a look of its own, derived from the seed.

Same seed and same JPEG encoder, same bytes: all draws are raw PCG64 output (a stream NumPy
holds stable), and pixels are made with + - * / and square roots only, which every CPU rounds
alike, unlike sin or exp.
"""

from __future__ import annotations

import colorsys
import enum
import io
import math
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Plane: TypeAlias = npt.NDArray[np.float32]
Colour: TypeAlias = npt.NDArray[np.float32]

SHORT_SIDE: Final = (96, 160)  # pixels; small, so that a demonstration decodes quickly
ASPECT: Final = (1.0, 1.6)
GREY_SHARE: Final = 0.03
JPEG_QUALITY: Final = 85
TINY_SIDE: Final = 16  # pixels: the smallest at which the 1000 classes' pictures all differ
TINY_QUALITY: Final = 50


class Purpose(enum.IntEnum):
    """What a stream of draws decides; part of its key, so that no two streams are the same."""

    SET = 1
    LOOK = 2
    TRAIN_PICTURE = 3
    VALIDATION_PICTURE = 4
    NUMBERS = 5
    LABELS = 6
    ORDER = 7
    COUNTS = 8
    TINY_PICTURE = 9


class Texture(enum.Enum):
    """The pattern that an object carries."""

    STRIPES = 0
    CHECKS = 1
    DOTS = 2
    RINGS = 3
    BLOTCHES = 4
    ZIGZAG = 5
    LATTICE = 6


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a class's pictures share: `hues` (dark, light) in [0, 1), `period` in pixels."""

    texture: Texture
    hues: tuple[float, float]
    period: float
    degrees: float


class Draws:
    """Uniform numbers from the PCG64 stream of a seed, a purpose and up to two numbers."""

    def __init__(self, seed: int, purpose: Purpose, first: int = 0, second: int = 0) -> None:
        key = (seed, purpose.value, first, second)
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def integer(self, stop: int) -> int:
        """An integer in [0, stop), for small `stop` (the bias is below stop / 2^53)."""
        return int(self.uniform(0, stop))

    def integers(self, count: int, stop: int) -> npt.NDArray[np.int64]:
        """What `count` calls of `integer(stop)` give, at once."""
        raw = np.asarray(self._bits.random_raw(count), dtype=np.uint64)
        return (stop * ((raw >> np.uint64(11)) * 2.0**-53)).astype(np.int64)

    def bytes(self, count: int) -> npt.NDArray[np.uint8]:
        """`count` uniform bytes."""
        raw = self._bits.random_raw(-(-count // 8))
        return np.asarray(raw, dtype="<u8").view(np.uint8)[:count]

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """The numbers 0 to count - 1 in a random order."""
        return np.argsort(self._bits.random_raw(count), kind="stable")


def class_look(seed: int, class_index: int) -> Look:
    """The look of one of ILSVRC's 1000 classes, the same for all its pictures.

    Textures take turns and hues go round the circle once, so that a few classes taken evenly
    differ in both; neighbours among the 1000 are of a colour, as ImageNet's are of a kind.
    """
    common = Draws(seed, Purpose.SET)
    turn = common.integer(len(Texture))
    hue = (common.uniform(0, 1) + class_index / 1000) % 1
    draws = Draws(seed, Purpose.LOOK, class_index)
    return Look(
        texture=tuple(Texture)[(turn + class_index) % len(Texture)],
        hues=((hue + draws.uniform(0.3, 0.7)) % 1, hue),
        period=draws.uniform(12, 24),
        degrees=draws.uniform(0, 90),
    )


def draw_jpeg(look: Look, draws: Draws) -> bytes:
    """One picture of a class as baseline JPEG, 4:2:0 (one component where it is grey)."""
    return encode(draw(look, draws), quality=JPEG_QUALITY)


def tiny_jpeg(look: Look, draws: Draws) -> bytes:
    """A class's texture in `TINY_SIDE` x `TINY_SIDE` pixels: a baseline JPEG of 320 to 400 bytes.

    The Huffman tables are made for the picture, as the usual ones alone would take 420 bytes.
    """
    pixels = np.zeros((TINY_SIDE, TINY_SIDE, 3), dtype=np.float32)
    _paint_object(pixels, look, draws)
    return encode(Image.fromarray(_bytes(pixels)), quality=TINY_QUALITY, optimize=True)


def encode(image: Image.Image, **options: Any) -> bytes:
    """A JPEG with halved chroma; `options` are Pillow's."""
    file = io.BytesIO()
    image.save(file, "JPEG", subsampling="4:2:0", **options)
    return file.getvalue()


def draw(look: Look, draws: Draws) -> Image.Image:
    """One picture of a class, RGB or now and then grey."""
    short = SHORT_SIDE[0] + draws.integer(SHORT_SIDE[1] - SHORT_SIDE[0] + 1)
    long = round(short * draws.uniform(*ASPECT))
    width, height = (short, long) if draws.integer(4) == 0 else (long, short)
    pixels = _background(draws, width, height)
    _paint_object(pixels, look, draws)
    for _ in range(draws.integer(3)):
        _paint_distractor(pixels, draws)
    image = Image.fromarray(_expose(pixels, draws))
    return image.convert("L") if draws.uniform(0, 1) < GREY_SHARE else image


def _background(draws: Draws, width: int, height: int) -> Plane:
    """Smooth clutter between two muted colours of no class, shape (height, width, 3), 0 to 255."""
    clutter = _noise(draws, width, height, cell=draws.uniform(12, 48))[..., None]
    first, second = (
        _colour(draws.uniform(0, 1), draws.uniform(0, 0.3), draws.uniform(50, 200))
        for _ in range(2)
    )
    pixels: Plane = first + (second - first) * clutter
    for _ in range(2 + draws.integer(3)):
        _paint_distractor(pixels, draws)
    return pixels


def _paint_object(pixels: Plane, look: Look, draws: Draws) -> None:
    """An ellipse with the texture of the class, over half of the picture or more, in place."""
    height, width, _ = pixels.shape
    centre_x = width * draws.uniform(0.4, 0.6)
    centre_y = height * draws.uniform(0.4, 0.6)
    across = (np.arange(width, dtype=np.float32) - centre_x)[None, :]
    down = (np.arange(height, dtype=np.float32) - centre_y)[:, None]
    radius_x, radius_y = width * draws.uniform(0.45, 0.8), height * draws.uniform(0.45, 0.8)
    inside = 1 - (across / radius_x) ** 2 - (down / radius_y) ** 2
    opacity = _clip(inside * 8)[..., None]

    cos, sin = _direction(look.degrees + draws.uniform(-8, 8))
    scale = look.period * draws.uniform(0.8, 1.25)
    along = (across * cos + down * sin) / scale + draws.uniform(0, 1)
    beside = (down * cos - across * sin) / scale + draws.uniform(0, 1)
    if look.texture is Texture.BLOTCHES:
        pattern = _clip((_noise(draws, width, height, cell=scale / 2) - 0.5) * 6 + 0.5)
    else:
        pattern = _pattern(look.texture, along, beside)

    dark = _jittered(look.hues[0], draws, draws.uniform(25, 60))
    light = _jittered(look.hues[1], draws, draws.uniform(110, 170))
    pixels += (dark + (light - dark) * pattern[..., None] - pixels) * opacity


def _pattern(texture: Texture, along: Plane, beside: Plane) -> Plane:
    """Values 0 to 1 in periods of one over the two coordinates."""
    if texture is Texture.STRIPES:
        return _edge(_wave(along) - 0.5)
    if texture is Texture.CHECKS:
        return _edge((_wave(along) - 0.5) * (_wave(beside) - 0.5) * 4)
    if texture is Texture.DOTS:
        return _edge(0.7 - _length(1 - _wave(along), 1 - _wave(beside)))
    if texture is Texture.RINGS:
        return _edge(_wave(_length(along, beside)) - 0.5)
    if texture is Texture.ZIGZAG:
        return _edge(_wave(along + _wave(beside * 0.7)) - 0.5)
    lines: Plane = np.maximum(_wave(along), _wave(beside))
    return _edge(lines - 0.75)


def _paint_distractor(pixels: Plane, draws: Draws) -> None:
    """A plain rectangle or disc of any colour, in place, a fifth of the picture's side at most."""
    height, width, _ = pixels.shape
    side = 4 + draws.integer(max(1, min(height, width) // 5))
    left, top = draws.integer(width - side), draws.integer(height - side)
    patch = pixels[top : top + side, left : left + side]
    colour = _colour(draws.uniform(0, 1), draws.uniform(0.2, 1), draws.uniform(20, 230))
    if draws.integer(2):
        patch[:] = colour
        return
    from_centre = np.arange(side, dtype=np.float32) - (side - 1) / 2
    squares = from_centre * from_centre
    patch[squares[:, None] + squares[None, :] <= side * side / 4] = colour


def _expose(pixels: Plane, draws: Draws) -> npt.NDArray[np.uint8]:
    """Contrast, brightness and sensor noise; rounded to bytes."""
    contrast, brightness = draws.uniform(0.8, 1.2), draws.uniform(-20, 20)
    amplitude = draws.uniform(0, 20)
    noise = draws.bytes(pixels.size).reshape(pixels.shape).astype(np.float32)
    noise *= amplitude / 255
    pixels *= contrast
    pixels += noise
    pixels += 128 * (1 - contrast) + brightness - amplitude / 2 + 0.5
    return _bytes(pixels)


def _bytes(pixels: Plane) -> npt.NDArray[np.uint8]:
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


def _noise(draws: Draws, width: int, height: int, *, cell: float) -> Plane:
    """Smooth noise, 0 to 1, whose blobs are about `cell` pixels wide."""
    columns, rows = 2 + int(width / cell), 2 + int(height / cell)
    grid = draws.bytes(columns * rows).reshape(rows, columns)
    image = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    smooth: Plane = np.asarray(image, dtype=np.float32)
    return smooth * (1 / 255)


def _wave(position: Plane) -> Plane:
    """A triangle wave of period one, 0 at whole numbers and 1 half-way between."""
    fraction: Plane = position - np.floor(position)
    return 1 - np.abs(fraction * 2 - 1)


def _length(across: Plane, down: Plane) -> Plane:
    length: Plane = np.sqrt(across * across + down * down)
    return length


def _edge(distance: Plane) -> Plane:
    """0 below and 1 above zero, with a soft step between."""
    return _clip(distance * 4 + 0.5)


def _clip(values: Plane) -> Plane:
    return np.clip(values, 0, 1)


def _direction(degrees: float) -> tuple[float, float]:
    """Cosine and sine in steps of 1/1024, so that the last bits of libm do not matter."""
    angle = math.radians(degrees)
    return round(math.cos(angle) * 1024) / 1024, round(math.sin(angle) * 1024) / 1024


def _jittered(hue: float, draws: Draws, luma: float) -> Colour:
    return _colour(hue + draws.uniform(-0.02, 0.02), draws.uniform(0.7, 1), luma)


def _colour(hue: float, saturation: float, luma: float) -> Colour:
    """RGB, 0 to 255, shape (3,): as light as `luma` (0 to 255) whatever the hue.

    A texture so shows in grey pictures too. A hue that cannot be so light is mixed with white.
    """
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, 1.0)
    own = 255 * (0.299 * red + 0.587 * green + 0.114 * blue)
    scale, white = (luma / own, 0.0) if luma <= own else (1.0, (luma - own) / (255 - own))
    rgb = [255 * (scale * part + white * (1 - part)) for part in (red, green, blue)]
    return np.array(rgb, dtype=np.float32)
