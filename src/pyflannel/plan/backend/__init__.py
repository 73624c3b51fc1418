"""One file per backend: what a host and what a peer need in the kernel. No backend knows another."""
