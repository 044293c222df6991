"""The one error that means "the input is wrong": command lines print its single line and exit with status 2."""


class InputError(ValueError):
    """Says what was given, what was expected and what to do."""
