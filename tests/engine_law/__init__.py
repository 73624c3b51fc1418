"""The stateful law of the engine: rules that hold after any history of events of one host."""
