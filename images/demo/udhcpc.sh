#!/bin/sh
# udhcpc calls this with deconfig, bound, renew, leasefail or nak; the lease is in variables.
resolver=/run/resolv.$interface

apply_lease() {
    ip addr replace "$ip/$mask" dev "$interface"
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    for gateway in $router; do
        ip route replace default via "$gateway" dev "$interface" 2>/dev/null && break
    done
    [ -z "$hostname" ] || { hostname "$hostname"; echo "127.0.1.1 $hostname" >>/etc/hosts; }
    {
        [ -z "${search:-$domain}" ] || echo "search ${search:-$domain}"
        for server in $dns; do echo "nameserver $server"; done
    } >"$resolver"
    cat /run/resolv.* >/etc/resolv.conf
}

case "$1" in
deconfig)
    ip -4 addr flush dev "$interface"
    rm -f "$resolver"
    ;;
bound)
    apply_lease
    mtu=$(cat "/sys/class/net/$interface/mtu")
    echo "demo: $interface $ip/$mask gateway ${router:-none} dns ${dns:-none} mtu $mtu (DHCP)"
    ;;
renew)
    apply_lease
    ;;
leasefail)
    [ -e "/run/no-lease.$interface" ] && exit 0
    : >"/run/no-lease.$interface"
    echo "demo: $interface has no address: no DHCP server answers (still asking)"
    ;;
esac
