"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """Bad input, named in one line together with its mend; `main` prints it and exits with status 2."""


class Diverged(UserError):
    """Training had no finite loss and gradient for too long, which another learning rate may mend."""
