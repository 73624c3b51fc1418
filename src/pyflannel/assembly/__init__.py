"""Composition: creates the adapters from the options, and the daemon from the adapters and the engine."""
