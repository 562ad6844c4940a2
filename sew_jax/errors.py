"""The exceptions that say all there is to say in one line, each with its exit status."""


class UserError(Exception):
    """Bad input, named together with its mend: what the user can mend, and what would only come again."""

    status = 2


class Diverged(UserError):
    """Training had no finite loss and gradient for too long, which another learning rate may mend."""


class Unavailable(Exception):
    """Something outside that passes, such as storage that does not answer: launchers start the same command again."""

    status = 75  # EX_TEMPFAIL of sysexits.h
