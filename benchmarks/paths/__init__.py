"""Paths between two hosts, each in a separate lab, measured alternately and compared."""
