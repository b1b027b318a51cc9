# Opens the serial ports of a command: stderr as 3, and as 4 and 5 stdout and stdin, or the terminal
# (4). They have the tag $tag; $terminal is empty where there is none, else it becomes its path.
#
# Ports are found by sysfs, since not every guest has udev's names for them, and come up a moment
# after they were plugged in. A terminal is one of the kernel's virtio consoles: the one that can be
# opened only after the port of stderr was.
exec 2>/dev/null
umask 022
export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export HOME="${HOME:-/root}"
tries=0
patience() {
    tries=$((tries + 1))
    [ $tries -lt 1000 ] || exit 9
    sleep 0.01 || sleep 1
}
find_port() {
    while :; do
        for port in /sys/class/virtio-ports/*; do
            name=
            read -r name <"$port/name" || continue
            port=/dev/${port##*/}
            [ "$name" = "qvm.$1.$tag" ] && [ -c "$port" ] && return
        done
        patience
    done
}
opens() { [ -c "$1" ] && (: <"$1"); }
find_terminal() {
    while :; do
        for port in /dev/hvc*; do
            case $consoles in *" $port "*) continue ;; esac
            opens "$port" && return
        done
        patience
    done
}
# Tells how the command ended, behind all that it wrote.
end() {
    [ -z "$terminal" ] || exec 4>"$terminal" # what a session leader leaves is hung up
    printf '\000%s \n' "$secret" >&4
    printf '\000%s %s\n' "$secret" "$1" >&3
    exit
}

[ -d /sys/class/virtio-ports ] || exit 9
consoles=" "
[ -z "$terminal" ] || for port in /dev/hvc*; do opens "$port" && consoles="$consoles$port "; done
find_port err && exec 3>"$port"
if [ -n "$terminal" ]; then
    find_terminal && exec 4<>"$port"
    [ "$columns" = 0 ] || stty rows "$rows" cols "$columns" <&4
    terminal=$port
else
    find_port in && exec 5<"$port"
    find_port out && exec 4>"$port"
fi
