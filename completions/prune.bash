# Tab completion of prune for bash. Made by `prune completion bash`.
_prune_completion() {
    local IFS=$'\n'
    COMPREPLY=( $(env _PRUNE_COMPLETE=complete_bash COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" \
        prune 2>/dev/null) )
    # Names of files are escaped by the shell, so that spaces in them survive.
    [ -e "${COMPREPLY[0]%/}" ] && compopt -o filenames 2>/dev/null
    if [ "${#COMPREPLY[@]}" -eq 1 ]; then
        case "${COMPREPLY[0]}" in */ | *:) compopt -o nospace 2>/dev/null ;; esac
    fi
}
complete -F _prune_completion prune
