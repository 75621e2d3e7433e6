"""Files of MD5 sums in the forms that people have, and nothing that merely looks like one."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from prep.verification.md5sums import read_sums
from shards.errors import DamagedData, ToolError, UsageError

ONE, OTHER = "1d675b47d978889d74fa0da5fadfb00e", "29b22e2961454d5413ddabcf34fc5622"


def written(path: Path, text: str) -> dict[str, str]:
    (path / "sums").write_text(text)
    return dict(read_sums(str(path / "sums")).by_name)


def test_the_digits_of_one_sum_need_no_file() -> None:
    sums = read_sums(ONE.upper())
    assert (sums.alone, dict(sums.by_name)) == (ONE, {})


@pytest.mark.parametrize(
    "line",
    [
        f"{ONE}  a b.tar",
        f"{ONE} *a b.tar",
        f"{ONE.upper()}  a b.tar",
        f"{ONE}  ./data/a b.tar",
        f"{ONE}  /data/a b.tar\r",
        f"MD5 (a b.tar) = {ONE}",
        f"MD5(data/a b.tar)= {ONE}",
    ],
)
def test_every_form_of_a_line_is_read(line: str, tmp_path: Path) -> None:
    text = f"# sums\n\n{line}\n{OTHER}  c.tar\n"
    assert written(tmp_path, text) == {"a b.tar": ONE, "c.tar": OTHER}


def test_a_name_with_escapes_is_the_name_that_md5sum_meant(tmp_path: Path) -> None:
    assert written(tmp_path, f"\\{ONE}  a\\nb\\\\n.tar\n") == {"a\nb\\n.tar": ONE}


def test_what_md5sum_writes_is_read(tmp_path: Path) -> None:
    if shutil.which("md5sum") is None:
        pytest.skip("md5sum is not installed")
    names = ["a.tar", "b c.tar", "d\ne.tar", "f\\g.tar"]
    for name in names:
        (tmp_path / name).write_text(name)
    for option in ("--text", "--binary", "--tag"):
        done = subprocess.run(
            ["md5sum", option, *names], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        expected = {
            name: hashlib.md5(name.encode(), usedforsecurity=False).hexdigest() for name in names
        }
        assert written(tmp_path, done.stdout) == expected


@pytest.mark.parametrize(
    "text", ["", "\n", "hello\n", f"{ONE}\n", f"{ONE[:-1]}  a\n", f"{ONE}{OTHER}  a\n", "\x00\xff"]
)
def test_what_is_no_file_of_sums_is_refused_by_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedData, match=str(tmp_path / "sums")):
        written(tmp_path, text)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    assert written(tmp_path, f"{ONE}  a/x\n{ONE}  b/x\n") == {"x": ONE}
    with pytest.raises(UsageError, match="two sums for files called x"):
        written(tmp_path, f"{ONE}  a/x\n{OTHER}  b/x\n")


def test_a_file_that_is_not_there_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="32 hexadecimal digits"):
        read_sums(str(tmp_path / "absent"))
    with pytest.raises(ToolError, match="32 hexadecimal digits"):
        read_sums(ONE[:-1])
