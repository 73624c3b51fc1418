"""Entry points; they alone put doors together."""
