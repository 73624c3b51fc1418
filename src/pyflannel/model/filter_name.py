"""What chains and tables are called: as the original calls them, where one daemon has the host for itself.

The daemons beside it have another device each, whose number stands behind the name.
"""

FIRST_DEVICE = "flannel0"
"""Its daemon calls its rules as the original does."""

_STEM = "flannel"


def filter_name(stem: str, device: str) -> str:
    """Return the daemon's name for something: `FLANNEL-FWD` with flannel0, `FLANNEL-FWD-1` with flannel1."""
    return stem if device == FIRST_DEVICE else f"{stem}-{device.removeprefix(_STEM)}"


def device_of(name: str, stem: str) -> str | None:
    """Return the device whose daemon calls something so; None when the name does not begin with `stem`."""
    if name == stem:
        return FIRST_DEVICE
    rest = name.removeprefix(f"{stem}-")
    return f"{_STEM}{rest}" if rest and rest != name else None
