"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """Bad input, named in one line together with its mend; `main` prints it and exits with status 2."""
