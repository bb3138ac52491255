"""The exception for problems that the user can fix."""

import os
import re
import sys
from pathlib import Path

from reconx_core.names import one_line

_BREAKS = re.compile(r"\s*\n\s*")


class UserError(Exception):
    """One clear sentence on what is wrong and what to do; the command line prints it and exits with code 2."""

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(_BREAKS.sub(" ", sentence)))  # it may hold the name of a file, or what a library says


def pip_install(extra: str) -> str:
    """The command that installs what an extra of reconx needs, into the environment that this process runs in."""
    python = Path(os.path.abspath(sys.executable))  # not resolved: that of an environment is a link to the system's
    here = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    return f"{here} -m pip install 'reconx[{extra}]'"
