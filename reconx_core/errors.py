"""The exception for problems that the user can fix."""

from reconx_core.names import shown


class UserError(Exception):
    """One clear sentence on what is wrong and what to do; the command line prints it and exits with code 2."""

    def __init__(self, sentence: str) -> None:
        super().__init__(shown(sentence))  # it may hold the name of a file
