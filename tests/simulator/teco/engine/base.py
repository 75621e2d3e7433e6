"""Where the vendor's examples find their passes."""

from pathlib import Path

PASS_PATH = Path(__file__).parent / "passes"
