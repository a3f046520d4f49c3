"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A mistake of the user's, told in one line: what was given, what is allowed, what to do.

    Command lines print the message and exit with status 2; a traceback would only hide it.
    """
