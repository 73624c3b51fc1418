"""A small HTTP server based on h11, for Unix sockets and TCP."""
