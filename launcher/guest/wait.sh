# The same before the command is known: the session is there already, and waits for it. The secret
# comes by a pipe then, and behind it how the command has ended.
export session command
set -- sh -c 'eval "$session"'
command -v setsid >/dev/null && set -- setsid "$@"
{
    (exec 6>&1 "$@" <&5 5<&- >&4 4>&- 2>&3)
    echo $?
} | {
    exec 5<&-
    IFS= read -r secret || exit 9
    read -r status || exit 10 # who tells it is gone
    end "$status"
}
