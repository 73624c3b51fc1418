"""The commands of flannelctl: options, tables and JSON. The package `commands` does the work of the
commands.
"""
