#!/bin/sh
# What udev does elsewhere: called for each device event, with the event's variables set.
case "$SUBSYSTEM $ACTION" in
"virtio-ports add")
    name=$(cat "/sys/class/virtio-ports/$DEVNAME/name" 2>/dev/null)
    [ -n "$name" ] || exit 0
    ln -sfn "../$DEVNAME" "/dev/virtio-ports/$name"
    if [ "$name" = org.qemu.guest_agent.0 ]; then
        qemu-ga -d -m virtio-serial -p "/dev/virtio-ports/$name" -t /run -f /run/qemu-ga.pid
    fi
    ;;
"virtio-ports remove")
    for link in /dev/virtio-ports/*; do
        [ "$(readlink "$link")" = "../$DEVNAME" ] && rm -f "$link"
    done
    ;;
"net add")
    case "$INTERFACE" in eth*) ;; *) exit 0 ;; esac
    ip link set "$INTERFACE" up
    # Goes on in the background once there is an address, or after two seconds without an answer.
    udhcpc -b -t 2 -T 1 -A 5 -i "$INTERFACE" -s /etc/udhcpc.sh -p "/run/udhcpc.$INTERFACE.pid" \
        -O mtu -O search 2>/dev/null
    ;;
" add" | *" add")
    [ -z "$MODALIAS" ] || modprobe -q "$MODALIAS" 2>/dev/null
    ;;
esac
