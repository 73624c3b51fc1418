"""Composition: options become adapters, adapters and engine become a daemon."""
