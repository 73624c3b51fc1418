"""A checker of the lease protocol: it runs the real step through every interleaving within stated bounds."""
