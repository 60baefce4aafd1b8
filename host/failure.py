"""What may go wrong without a defect of ours: the base of all errors that are told in one line."""

from __future__ import annotations


class Failure(Exception):
    """Something cannot be done. `str()` is one line for a Docker user: what was wrong, what was expected, which id.

    `is_refusal`: it is of the caller's making, who asks for what is not there, for what may not be, or in wrong words.
    All others are of the cluster, of this host or of the driver: it is these that an operator is told of (served.py).
    """

    is_refusal = False


# These errors are told in one line to the caller of a request or of a command. Any other error is a defect of ours: it
# is logged with its trace.
EXPECTED = (Failure, OSError)
# Where what programs print is read, and nobody waits for the answer: another version of a program may print anything.
EXPECTED_OF_PROGRAMS = (*EXPECTED, ValueError)
