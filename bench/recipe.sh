#!/bin/sh
# The network of `qvm run --net nat` as people set it up by hand: ip and iptables, one after another.
# recipe.sh up|down
set -eu
ns=bench
case $1 in
up)
    ip netns add $ns
    ip link add bench-h type veth peer name up0
    ip link set up0 netns $ns
    ip addr add 10.250.0.0/31 dev bench-h
    ip link set bench-h up
    ip netns exec $ns ip link set lo up
    ip netns exec $ns ip addr add 10.250.0.1/31 dev up0
    ip netns exec $ns ip link set up0 up
    ip netns exec $ns ip route add default via 10.250.0.0
    ip netns exec $ns ip link add br0 type bridge
    ip netns exec $ns ip addr add 192.168.26.1/24 dev br0
    ip netns exec $ns ip link set br0 up
    ip netns exec $ns ip tuntap add dev tap0 mode tap vnet_hdr
    ip netns exec $ns ip link set tap0 master br0
    ip netns exec $ns ip link set tap0 up
    ip netns exec $ns sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
    ip netns exec $ns iptables -t nat -A POSTROUTING -s 192.168.26.0/24 -o up0 -j MASQUERADE
    echo 1 > /proc/sys/net/ipv4/ip_forward
    iptables -A FORWARD -i bench-h -j ACCEPT
    iptables -A FORWARD -o bench-h -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
    iptables -t nat -A POSTROUTING -s 10.250.0.1/32 -o wan0 -j MASQUERADE
    ;;
down)
    iptables -t nat -D POSTROUTING -s 10.250.0.1/32 -o wan0 -j MASQUERADE
    iptables -D FORWARD -o bench-h -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
    iptables -D FORWARD -i bench-h -j ACCEPT
    echo 0 > /proc/sys/net/ipv4/ip_forward
    ip link del bench-h
    ip netns del $ns
    ;;
esac
