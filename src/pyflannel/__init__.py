"""pyflannel: an overlay network for containers, a drop-in replacement of flannel.

Start with ARCHITECTURE.md at the root of the repository. The docstring of each package defines its content.
"""

VERSION = "0.1.0"
"""The metadata of the package read it here, because reading them at run time takes megabytes of memory."""
