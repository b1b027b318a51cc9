# Becomes the command, by the script $command in the end. Its parameters are the secret, the terminal
# (empty: none), the directory and the user (empty: as they are), NAME=VALUE..., "--" and the
# command's words. What there is to say goes to 3.
#
# A user is changed by coreutils, which change nothing else, or else by busybox; su(1) of other
# makes stays as the command's parent, and keeps signals from it.
refuse() { echo "$1" >&3; exit 126; }
secret=$1 terminal=$2 directory=$3 user=$4
shift 4
become=$command
unset session command
[ -z "$terminal" ] || exec <>"$terminal" >&0 2>&0
set -- "$secret" "$terminal" "$@"
if [ -n "$user" ]; then
    set -- sh -c "$become" sh "$@"
    login=${user%%:*} account=
    while IFS=: read -r name x number x x home x; do
        case $login in "$name" | "$number") account=$name HOME=$home; break ;; esac
    done <<EOF
$(getent passwd "$login" 2>/dev/null || cat /etc/passwd)
EOF
    case $account,$login in ,*[!0-9]*) refuse "the guest has no user '$login'" ;; esac
    [ -z "$terminal" ] || chown "$login" "$terminal" 2>/dev/null
    case $(chroot --help 2>&1) in
        *--userspec*) set -- chroot --userspec="$user" --skip-chdir / "$@" ;;
        *)
            [ -n "$account" ] && [ "$login" = "$user" ] ||
                refuse "the guest's chroot has no --userspec, which it takes for '$user'"
            set -- su -s /bin/sh -c 'exec "$@"' -- "$account" sh "$@" ;;
    esac
fi
[ -z "$directory" ] || cd "$directory" 2>&3 || exit 126
[ -z "$user" ] || exec "$@"
eval "$become"
