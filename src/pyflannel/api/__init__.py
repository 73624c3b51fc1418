"""The API of a running daemon: control socket, health and metrics. The modules of this package do not
import each other.
"""
