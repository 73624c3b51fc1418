#!/bin/bash
# The first process of a sandbox: it makes the sandbox look like a machine of its own, says "ready", and then
# does nothing but reap. It is PID 1 of a PID namespace, so whoever kills it ends every process of the sandbox.
#
# usage: sandbox.sh DIRECTORY NAME
set -e
directory=$1
name=$2

echo "$name" >/proc/sys/kernel/hostname
mkdir -p "$directory"/{run,docker,log,cgroup}
mount --bind "$directory/run" /run

# What is written below these stays in the sandbox's directory.
for part in etc var/lib opt; do
    upper=$directory/$part work=$directory/.overlay/$part
    mkdir -p "$upper" "$work"
    mount -t overlay -o "lowerdir=/$part,upperdir=$upper,workdir=$work" lab "/$part"
done

# Docker's own overlays cannot lie on an overlay.
mkdir -p /var/lib/docker /run/lock
mount --bind "$directory/docker" /var/lib/docker

# A sysfs of this network namespace; the control groups below it are the machine's.
mount --rbind /sys/fs/cgroup "$directory/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$directory/cgroup" /sys/fs/cgroup
umount --lazy "$directory/cgroup"
if [ -d /sys/fs/bpf ]; then mount -t bpf bpf /sys/fs/bpf; fi

tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
ip link set lo up
# Before any Docker engine starts: one that has to turn it on sets the policy of FORWARD to DROP.
echo 1 >/proc/sys/net/ipv4/ip_forward

echo ready
exec </dev/null >/dev/null 2>&1
while :; do
    sleep infinity &
    wait $!
done
