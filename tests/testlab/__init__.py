"""Parts of a lab that only tests and benchmarks need: faults, many hosts, measurements."""
