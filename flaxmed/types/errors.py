"""The two ways in which flaxmed says that something is wrong."""


class InputError(ValueError):
    """Bad input from outside: a file, an option, an array.

    The message is one line that names the file, row, option or key and says what was expected.
    The command line prints it and exits with code 2.

    Example:
        >>> issubclass(InputError, ValueError)
        True
    """


class RunError(RuntimeError):
    """A run that failed although its input was good: a non-finite loss, a full disk.

    The command line prints the message, one line, and exits with code 1.

    Example:
        >>> issubclass(RunError, RuntimeError)
        True
    """
