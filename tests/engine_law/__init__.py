"""The stateful law of the engine: histories of one host, and the rules that hold after each of them."""
