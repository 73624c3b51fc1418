"""The commands of flannelctl: options, tables, JSON. Thin; the work is in `commands`."""
