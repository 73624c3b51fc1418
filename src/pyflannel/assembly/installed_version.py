"""Which version is installed."""


def installed_version() -> str:
    """Return the version, as the package's metadata say."""
    # Not at the top: it takes the daemon more than 1 MB of memory, and most are never asked.
    from importlib.metadata import version

    return version("pyflannel")
