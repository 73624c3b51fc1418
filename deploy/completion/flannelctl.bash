# Completion of flannelctl for bash. The program itself completes its commands and options.
eval "$(_FLANNELCTL_COMPLETE=bash_source flannelctl)"
