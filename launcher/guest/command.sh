# Becomes the command, and tells its process ID before. Nothing here has a name that the command's
# environment could have.
printf '%s %s %s\n' "$1" $$ "$2" >&3
exec 3>&-
shift 2
while [ "$1" != -- ]; do export "$1"; shift; done
shift
case $1 in
    */*) ;;
    *) command -v "$1" >/dev/null || { echo "sh: $1: not found" >&2; exit 127; } ;;
esac
exec "$@"
