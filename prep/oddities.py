"""What is odd about images: known quirks of ILSVRC2012, and names that contradict their bytes."""

from __future__ import annotations

from dataclasses import dataclass

from prep import ilsvrc
from prep.labels import canonical_name
from shards.image import Format, ImageInfo


@dataclass(frozen=True, kw_only=True)
class Oddity:
    """Images that are not what their names or ILSVRC2012 make one expect.

    `known`: ILSVRC2012 itself is so, and nothing is wrong with this copy.
    """

    what: str
    known: bool
    images: tuple[str, ...]


def oddity(name: str, info: ImageInfo) -> tuple[str, bool] | None:
    """What is odd about a sound image of this name, and whether ILSVRC2012's own is so."""
    stem, ending = canonical_name(name).rsplit(".", 1)
    is_png = info.format is Format.PNG
    is_cmyk = not is_png and info.components == 4
    rules = (
        (is_png and ending.lower() != "png", "PNG under the name of a JPEG", ilsvrc.PNG_IMAGE),
        (not is_png and ending.lower() == "png", "JPEG under the name of a PNG", None),
    )
    for applies, what, known in rules:
        if applies:
            return what, stem == known
    if is_cmyk:
        return "CMYK", stem in ilsvrc.CMYK_IMAGES
    if stem in ilsvrc.CMYK_IMAGES:
        return "re-encoded: ILSVRC2012 has it as CMYK", False
    if stem == ilsvrc.PNG_IMAGE and not is_png:
        return "re-encoded: ILSVRC2012 has it as a PNG", False
    return ("damaged EXIF block, sound pixels", True) if stem == ilsvrc.BROKEN_EXIF_IMAGE else None
