"""Many hosts: real ones that join at once, and such as are a lease and nothing more."""
