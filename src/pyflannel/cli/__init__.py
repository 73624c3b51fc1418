"""The commands of flannelctl: options, tables and JSON. `commands` does the work."""
