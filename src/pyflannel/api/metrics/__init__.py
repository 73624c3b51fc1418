"""Metrics for Prometheus: the families, their text, and the route that serves them."""
