# Tells a machine that was saved who it is from now on, and when: awaken NAME SECONDS NANOSECONDS
# RANDOM BOOTID. A program does that at once where there is one for it, since each that a shell has to
# start takes its time; where one is started before (start_awakener FD) it waits, and says "ready" to
# that descriptor when it does.
helper=
awakener() {
    set -- "$(uname -m)" "$@"
    if command -v perl; then
        exec perl -e "$awaken_perl" "$@"
    elif command -v python3; then
        exec python3 -c "$awaken_python" "$@"
    fi
    exit 1
} >/dev/null 2>&1
start_awakener() {
    command -v perl || command -v python3 || return
    directory=$(mktemp -d) || return
    mkfifo "$directory/words" || { rm -r "$directory"; return; }
    exec 7<>"$directory/words" 9<"$directory/words"
    rm -r "$directory"
    (awakener 8) <&9 7>&- 9<&- 8>&"$1" &
    helper=$!
    exec 9<&-
} >/dev/null 2>&1
dismiss_awakener() {
    [ -n "$helper" ] || return
    exec 7>&-
    wait "$helper"
}
awaken() {
    if [ -n "$helper" ]; then
        echo "$*" >&7
        dismiss_awakener && helper= && return
        helper=
    else
        echo "$*" | (awakener) && return
    fi
    # Busybox's date knows whole seconds only.
    {
        echo "$1" >/proc/sys/kernel/hostname
        now=
        read -r now </sys/class/rtc/rtc0/since_epoch
        if [ "$now" -gt "$2" ] && [ "$now" -lt $(($2 + 60)) ]; then
            date -u -s "@$now"
        else
            date -u -s "@$2.$3" || date -u -s "@$2"
        fi
        echo "$4" >/dev/urandom
        (echo "$5" >/run/qvm-boot-id &&
            ! [ /run/qvm-boot-id -ef /proc/sys/kernel/random/boot_id ] &&
            mount --bind /run/qvm-boot-id /proc/sys/kernel/random/boot_id &)
    } >/dev/null 2>&1
}
