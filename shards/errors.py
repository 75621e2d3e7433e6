"""Foreseeable failures, each one sentence for the person at the keyboard.

    ToolError            something on disk or in the machine is not as it must be       exit 1
    ├── DamagedData      a file is truncated, altered or not what its name says         exit 1
    └── UsageError       the command was asked for something that cannot be             exit 2

The message names what and where, what was expected and found, and what to do. The command
line prints it without a traceback; programming errors stay ordinary exceptions.
"""

from __future__ import annotations


class ToolError(Exception):
    """A failure that a user can understand and mend."""

    exit_code = 1


class DamagedData(ToolError):
    """A file that was read is truncated, altered, hostile, or not of the format it should be."""


class UsageError(ToolError):
    """The request itself cannot be met, whatever the state of the disk."""

    exit_code = 2
