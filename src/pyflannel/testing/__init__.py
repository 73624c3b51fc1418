"""Published doubles of the ports, for the tests of pyflannel and of those who build on it."""
