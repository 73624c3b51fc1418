"""pyflannel: an overlay network for containers, a drop-in replacement of flannel.

Start with ARCHITECTURE.md at the root of the repository; each package says in its
docstring what may live there.
"""
