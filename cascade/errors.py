"""The one error a person is meant to read."""


class UserError(Exception):
    """A mistake that the person running the program can mend.

    The message is one clear sentence: what was wrong, and what to do about it. The command line
    prints it without a traceback and exits with status 2. It is raised before any long work starts.
    """
