"""Letters stay in their space, whatever the text and whatever this machine can draw with."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image, ImageFont

from shards.typeface import find_typeface

NAME = "American Staffordshire terrier"
TEXTS = (
    NAME,
    "x",
    "",
    "two  words",
    "line\nbreak",
    "\ud800 lone surrogate",
    "犬 \N{DOG FACE} \x07",
)


@pytest.mark.parametrize("width", [20, 60, 150, 1000])
@pytest.mark.parametrize("text", TEXTS)
def test_a_line_is_fitted_to_its_width(text: str, width: int) -> None:
    face = find_typeface(NAME)(16)
    fitted = face.fit(text, width)
    assert face.width(fitted) <= width
    assert (fitted == text) == (face.width(text) <= width)


def test_what_is_cut_keeps_both_ends() -> None:
    face = find_typeface(NAME)(16)
    names = [f"ILSVRC2012_val_{number:08d}" for number in (293, 294)]
    one, other = (face.fit(name, 120) for name in names)
    assert one.startswith("ILS")
    assert "..." in one
    assert one != other


def test_words_go_on_in_the_next_line() -> None:
    face = find_typeface(NAME)(20)
    assert face.wrap("hook", 200, 2) == ["hook"]
    assert face.wrap(NAME, face.width("American Staffordshire"), 2) == [
        "American Staffordshire",
        "terrier",
    ]
    lines = face.wrap(NAME + " and its many relatives", 150, 2)
    assert len(lines) == 2
    assert all(face.width(line) <= 150 for line in lines)
    assert "..." in lines[1]


@pytest.mark.parametrize("text", TEXTS)
def test_letters_are_drawn_where_they_should_be_and_nowhere_else(text: str) -> None:
    face = find_typeface(text)(20)
    width = face.width(text)
    canvas = Image.new("RGB", (width + 40, face.height + 40), (255, 255, 255))
    face.draw(canvas, (20, 20), text, (0, 0, 0))
    box = Image.eval(canvas.convert("L"), lambda value: 255 - value).getbbox()
    if text:
        assert box is not None
        assert 20 <= box[0] < box[2] <= 20 + width
        assert 20 <= box[1] < box[3] <= 20 + face.height
    else:
        assert box is None


def test_a_name_in_another_script_takes_a_typeface_that_has_it() -> None:
    try:
        ImageFont.truetype("DejaVuSans.ttf", 20)
    except OSError:
        pytest.skip("DejaVu Sans is not installed")
    greek = find_typeface("σκύλος")(20)
    assert bytes(greek.letters.getmask("λ")) != bytes(greek.letters.getmask("\uffff"))


def test_pillow_without_freetype_draws_too() -> None:
    """As pillow-simd often is. What Python is told not to find is what such a build lacks."""
    code = (
        "import sys\n"
        "sys.modules['PIL._imagingft'] = None\n"
        "from PIL import Image\n"
        "from shards.typeface import find_typeface\n"
        "for size in (16, 20, 36):\n"
        "    face = find_typeface('hook')(size)\n"
        "    assert size <= face.height <= size + 11, face\n"
        "    for text in ('hook', 'σκύλος ...', 'a\\nb', ''):\n"
        "        canvas = Image.new('L', (400, 60))\n"
        "        face.draw(canvas, (0, 0), text, 255)\n"
        "        box = canvas.getbbox()\n"
        "        assert (box is None) == (not text), text\n"
        "        assert not text or box[2] <= face.width(text) and box[3] <= face.height\n"
        "    assert face.width(face.fit('black and gold garden spider', 150)) <= 150\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
