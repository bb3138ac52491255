"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """One clear sentence on what is wrong and what to do; the command line prints it and exits with code 2."""
