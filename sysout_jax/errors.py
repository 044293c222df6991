"""Errors that users meet; everything else that is raised is a bug."""


class InputError(ValueError):
    """Bad input: one line with what was given, what was expected and what to do. Command lines exit with status 2."""


class UnknownSettings(InputError):
    """A checkpoint's config has settings that could be mathematics and are not computed; `names` are theirs, `given` those accepted so far."""

    def __init__(self, message: str, names: tuple[str, ...], given: tuple[str, ...] = ()):
        super().__init__(message)
        self.names, self.given = names, given


class AtWork(InputError):
    """Another process works where this one was told to."""


class RunError(RuntimeError):
    """A run that cannot go on though its input is good (disk full, NaN loss). Command lines exit with status 1."""
