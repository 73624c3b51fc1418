"""Doubles of the ports: a clock, a kernel, a store; strategies for values of the model."""
