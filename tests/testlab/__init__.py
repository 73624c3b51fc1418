"""Parts of a lab that only tests and benchmarks need: faults, crowds of hosts, measurements."""
