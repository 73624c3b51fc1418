# Completion of flanneld for bash: the flags in its help.
_flanneld() {
    local flags
    flags=$(flanneld --help | grep -oE '^  --[a-zA-Z0-9_-]+=?' | tr -d ' ')
    compopt -o nospace
    mapfile -t COMPREPLY < <(compgen -W "$flags" -- "${COMP_WORDS[COMP_CWORD]}")
}
complete -o default -F _flanneld flanneld
