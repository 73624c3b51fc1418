"""The place where a daemon with few rights finds its programs."""

from pyflannel.assembly.directories import Places
from pyflannel.errors import TargetError
from pyflannel.kernel.bpf.pins import mount_pin_directory, pin_standing


async def lay_pins(places: Places) -> str:
    """Mount it and fill it with what stands; return what was done, in a line.

    Raises:
        TargetError: it cannot be had here.
    """
    try:
        mount_pin_directory(str(places.bpf))
        count = await pin_standing(str(places.bpf))
    except OSError as error:
        raise TargetError(
            f"no eBPF programs can be pinned in {places.bpf}: {error.strerror}",
            hint="It takes root, and a kernel with eBPF. Without it packets go through user space.",
        ) from error
    return f"{places.bpf} holds the programs that stand here: {count}"
