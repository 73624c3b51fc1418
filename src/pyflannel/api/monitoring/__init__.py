"""Health and metrics over HTTP: the HTTP routes and the values of the metrics."""
