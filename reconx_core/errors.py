"""The exception for problems that the user can fix."""

import re

from reconx_core.names import one_line

_BREAKS = re.compile(r"\s*\n\s*")


class UserError(Exception):
    """One clear sentence on what is wrong and what to do; the command line prints it and exits with code 2."""

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(_BREAKS.sub(" ", sentence)))  # it may hold the name of a file, or what a library says
