# Becomes the command, and tells its process ID before. Nothing here has a name that the command's
# environment could have.
printf '%s %s %s\n' "$1" $$ "$2" >&3
exec 3>&-
shift 2
while [ "$1" != -- ]; do export "$1"; shift; done
shift
exec "$@"
