"""How the world comes in: each door is thin, and none knows another."""
