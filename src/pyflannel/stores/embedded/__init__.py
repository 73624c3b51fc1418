"""The store in one SQLite file, shared by the processes of one machine; nothing else to install or run."""
