"""What every bench is to the one who runs it: options, the text that it prints, the end when it fails."""
