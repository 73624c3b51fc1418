"""Adapter: programs of ours that are started, watched and told what to do."""
