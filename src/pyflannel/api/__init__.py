"""The API of a running daemon: control socket, health, metrics. Its modules do not import each other."""
