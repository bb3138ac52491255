"""The exception for problems that the user can fix."""


class UserError(Exception):
    """One clear sentence on what is wrong and what to do; the command line prints it and exits with code 2."""
