"""Entry points. Only they combine the API and the commands with the rest."""
