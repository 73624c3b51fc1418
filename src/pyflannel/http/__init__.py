"""One small HTTP server over h11, for sockets of the host and of the network."""
