"""The one class of errors that are the input's fault."""


class InputError(ValueError):
    """What came in cannot be used. The message says what came, what was expected and what to do.

    The command line shows it as one line with exit code 2; every other exception is a fault of the program and keeps its traceback.
    """
