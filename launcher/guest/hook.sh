# Runs the script $2 of the user, whose output is in a file: what it leaves behind has it open, and
# the agent would wait for that. The last line says best what went wrong.
[ -n "$2" ] || exit 0
said=$(mktemp) || said=/dev/null
QVM_NAME=$1 sh -c "$2" </dev/null >"$said" 2>&1
status=$?
tail -n 1 "$said"
[ "$said" = /dev/null ] || rm "$said"
exit $status
