"""The zip that torch.save writes, looked at before anything in it is believed.

torch stores and never compresses, so what unpacks to more than the file holds was made to fill
a memory.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from shards.errors import DamagedData


def check_stored(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse a zip whose members are compressed or claim more bytes than the file has.

    Raises DamagedData. No member is read.
    """
    members = archive.infolist()
    compressed = next((each for each in members if each.compress_type != zipfile.ZIP_STORED), None)
    if compressed is not None:
        raise DamagedData(
            f"{path} is refused: its part {compressed.filename[:80]!r} is compressed and would "
            f"grow to {compressed.file_size:,} bytes; torch.save never compresses"
        )
    claimed = sum(each.file_size for each in members)
    if claimed > path.stat().st_size:
        raise DamagedData(
            f"{path} is refused: its parts claim {claimed:,} bytes and the file has "
            f"{path.stat().st_size:,}; it was not written by torch.save"
        )
