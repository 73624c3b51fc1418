"""The common command line of benchmarks: options, output, and the exit status."""
