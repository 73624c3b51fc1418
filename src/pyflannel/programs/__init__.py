"""Entry points. Only these modules combine the API and the commands with the rest."""
