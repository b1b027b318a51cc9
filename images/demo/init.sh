#!/bin/sh
# PID 1 of qvm's demo guest: devices, network, guest agent, then a shell on the console.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux ENV=/etc/profile

/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s 2>/dev/null
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/virtio-ports
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
: >/run/qvm-booting # `qvm run --warm` waits for its end

modprobe -a -q $(cat /etc/modules) 2>/dev/null

# Devices that are plugged in later are /sbin/hotplug's, and so are those that are here by now.
uevent /sbin/hotplug 2>/dev/null &
[ -e /dev/input/event0 ] && acpid -l /dev/null 2>/dev/null

ip link set lo up
waiting=
for nic in /sys/class/net/eth*; do
    [ -e "$nic" ] || continue
    ACTION=add SUBSYSTEM=net INTERFACE=${nic##*/} /sbin/hotplug &
    waiting="$waiting $!"
done
[ -z "$waiting" ] || wait $waiting
rm -f /run/qvm-booting
# The agent last: who asks for a command finds the network up.
for port in /sys/class/virtio-ports/*; do
    [ -e "$port" ] && ACTION=add SUBSYSTEM=virtio-ports DEVNAME=${port##*/} /sbin/hotplug
done

# What busybox's halt, poweroff and reboot send to PID 1.
end() {
    sync
    umount -a -r 2>/dev/null
    busybox "$1" -f
}
trap 'end poweroff' USR1 USR2
trap 'end reboot' TERM

echo "demo: busybox on Linux $(uname -r); 'poweroff' or the end of this shell ends it"
cd /root
# Not with '&': a shell's background jobs, and all that they start, ignore Ctrl-C.
start-stop-daemon -S -b -p /run/console.pid -x /bin/sh -- \
    -c 'setsid cttyhack /bin/sh </dev/console >/dev/console 2>&1; kill -USR2 1'
while :; do
    sleep 86400 &
    wait $!
done
