# Runs the command in a session of its own.
export session command
set -- sh -c 'eval "$session"' sh "$secret" "$terminal" "$@"
if [ -n "$terminal" ]; then
    (exec setsid "$@" 2>&3 4>&-)
else
    command -v setsid >/dev/null && set -- setsid "$@"
    (exec "$@" <&5 5<&- >&4 4>&- 2>&3)
fi
end $?
