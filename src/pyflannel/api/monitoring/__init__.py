"""Health and metrics over HTTP: the routes, and the metrics."""
