"""Adapter: processes of pyflannel that are started, watched and controlled."""
