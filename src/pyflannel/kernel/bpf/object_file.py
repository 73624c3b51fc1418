"""The compiled programs, as the package ships them."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from pyflannel.errors import TargetError
from pyflannel.kernel.bpf.layout import BUILD_OCTETS

OBJECT_NAME = "fastpath.bpf.o"


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """An ELF object for the kernel.

    Attributes:
        build: the first octets of its SHA-256 digest, by which its programs are known again.
    """

    octets: bytes
    build: bytes


def read_object() -> ObjectFile:
    """Return the shipped object.

    Raises:
        TargetError: the installation lacks it.
    """
    try:
        octets = files("pyflannel.kernel.bpf").joinpath(OBJECT_NAME).read_bytes()
    except OSError as error:
        raise TargetError(
            f"the eBPF programs cannot be read: {error}", hint="Install pyflannel again."
        ) from error
    return ObjectFile(octets, hashlib.sha256(octets).digest()[:BUILD_OCTETS])
