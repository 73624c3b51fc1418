# Completion of flanneld for fish: the flags in its help.
complete -c flanneld -a "(flanneld --help | string match -r -- '^  --[a-zA-Z0-9_-]+=?' | string trim)"
