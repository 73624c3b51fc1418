"""The API of a running daemon: control socket, health and metrics. Its modules do not import each other."""
