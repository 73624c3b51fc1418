"""The tasks that flannelctl does itself, such as examining and cleaning a host, with or without a daemon."""
