"""pyflannel: an overlay network for containers, a drop-in replacement of flannel.

Start with ARCHITECTURE.md at the root of the repository. The docstring of each package defines its content.
"""

VERSION = "0.1.0"
"""The package metadata takes the version from here, because reading the metadata at run time takes
megabytes of memory."""
