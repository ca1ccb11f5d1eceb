"""Errors the user can fix: one line, exit code 2."""


class NephiError(Exception):
    """Input or settings that NePhi cannot work with; the message says what is wrong and what to do."""
