"""The Nodes of a Kubernetes cluster as a store."""
