# Completion of flannelctl for fish. The program itself completes its commands and options.
_FLANNELCTL_COMPLETE=fish_source flannelctl | source
