"""Several hosts on one machine: segments, routers, hosts as namespaces, containers, traffic."""
