"""A question to the kernel has three answers: yes, no, and that it may not be asked."""

import errno
import os
from collections.abc import Callable, Collection

from pyflannel.model.feature import Answer


def ask(question: Callable[[], object], absent: Collection[int]) -> tuple[Answer, OSError | None]:
    """Return the answer, and the error that it came by.

    Args:
        question: does something that succeeds where the feature is there.
        absent: the errnos by which the kernel says that it is not. Any other tells nothing of it.
    """
    try:
        question()
    except OSError as error:
        return ("absent" if error.errno in absent else "unknown"), error
    return "present", None


def said(error: OSError | None) -> str:
    """Return the kernel's word, as people look it up."""
    if error is None or error.errno is None:
        return ""
    return f"{errno.errorcode.get(error.errno, f'errno {error.errno}')}: {os.strerror(error.errno)}"
