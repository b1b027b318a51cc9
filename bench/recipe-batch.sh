#!/bin/sh
# The same network with as few programs as ip and nft allow: one ip -batch a namespace, one nft -f.
# recipe-batch.sh up|down
set -eu
ns=bench
case $1 in
up)
    ip netns add $ns
    ip -netns $ns -batch - <<END
link set lo up
tuntap add dev tap0 mode tap vnet_hdr
link add up0 type veth peer name bench-h netns $$
link add br0 type bridge
link set tap0 master br0 up
addr add 192.168.26.1/24 dev br0
link set br0 up
addr add 10.250.0.1/31 dev up0
link set up0 up
route add default via 10.250.0.0
END
    ip -batch - <<END
addr add 10.250.0.0/31 dev bench-h
link set bench-h up
END
    ip netns exec $ns sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; exec nft -f -' <<END
table ip qvm {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname up0 ip saddr 192.168.26.0/24 masquerade
    }
}
END
    echo 1 > /proc/sys/net/ipv4/conf/bench-h/forwarding
    echo 1 > /proc/sys/net/ipv4/conf/wan0/forwarding
    nft -f - <<END
table ip bench {
    chain forward {
        type filter hook forward priority filter
        iifname bench-h accept
        oifname bench-h ct state established,related accept
        oifname bench-h drop
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        ip saddr 10.250.0.1 oifname != bench-h masquerade
    }
}
END
    ;;
down)
    nft delete table ip bench
    echo 0 > /proc/sys/net/ipv4/conf/wan0/forwarding
    ip link del bench-h
    ip netns del $ns
    ;;
esac
