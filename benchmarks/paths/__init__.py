"""Paths between two hosts: laid each in a lab of its own, measured turn by turn, compared."""
