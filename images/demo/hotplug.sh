#!/bin/sh
# What udev does elsewhere: called for each device event, with the event's variables set.
case "$SUBSYSTEM $ACTION" in
"virtio-ports add")
    # Those of a command come and go with it, and are found by sysfs: no process for them.
    { read -r name <"/sys/class/virtio-ports/$DEVNAME/name"; } 2>/dev/null || exit 0
    case $name in qvm.*) exit 0 ;; esac
    ln -sfn "../$DEVNAME" "/dev/virtio-ports/$name"
    if [ "$name" = org.qemu.guest_agent.0 ]; then
        qemu-ga -d -m virtio-serial -p "/dev/virtio-ports/$name" -t /run -f /run/qemu-ga.pid
    fi
    ;;
"virtio-ports remove")
    for link in /dev/virtio-ports/*; do
        [ -e "$link" ] || rm -f "$link"
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
