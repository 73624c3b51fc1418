"""Health and metrics over HTTP: the routes, the families of metrics, and their text."""
