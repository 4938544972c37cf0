# Tab completion of prune for fish. Made by `prune completion fish`.
function __prune_complete
    set -lx _PRUNE_COMPLETE complete_fish
    set -lx _PRUNE_WORDS (commandline -opc | string collect)
    set -lx _PRUNE_CURRENT (commandline -ct)
    prune 2>/dev/null
end
complete --command prune --no-files --arguments '(__prune_complete)'
