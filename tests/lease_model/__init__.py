"""The model checker of the lease protocol, and simulations of many hosts."""
