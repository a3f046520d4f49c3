"""The one exception that stands for a user's mistake."""


class UserError(SystemExit):
    """A mistake of the user's, told in one line: what was given, what is allowed, what to do.

    It derives from `SystemExit` because fairseq's command lines let ordinary exceptions end in a traceback (and write a
    crash checkpoint first), which would bury the line. Raised anywhere, it prints the line and ends with status 1.

    Args:
        message: the line; line breaks inside are folded into spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__("error: " + " ".join(message.split()))
