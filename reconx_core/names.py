"""Names of files as they are shown."""

from __future__ import annotations

import re

_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # how Python keeps bytes of a file name that are not UTF-8, to open the file by it


def shown(name: str) -> str:
    """The name with U+FFFD for every byte that is not UTF-8: as it is, it can be neither encoded nor printed."""
    return _NOT_UTF8.sub("\ufffd", name)
