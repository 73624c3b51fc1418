#!/bin/bash
# The first process of a sandbox. The script gives the sandbox its own directories and network settings, prints "ready",
# and then only reads the exit status of other processes. The script is PID 1 of a PID namespace, so the kernel kills
# every process of the sandbox when this process is killed.
#
# usage: sandbox.sh DIRECTORY NAME
set -e
directory=$1
name=$2

echo "$name" >/proc/sys/kernel/hostname
mkdir -p "$directory"/{run,docker,log,cgroup}
mount --bind "$directory/run" /run

# Files that are written below these directories are in the directory of the sandbox.
for part in etc var/lib opt; do
    upper=$directory/$part work=$directory/.overlay/$part
    mkdir -p "$upper" "$work"
    mount -t overlay -o "lowerdir=/$part,upperdir=$upper,workdir=$work" lab "/$part"
done

# Docker cannot create its overlays on an overlay, so it gets a directory without one.
mkdir -p /var/lib/docker /run/lock
mount --bind "$directory/docker" /var/lib/docker

# A sysfs of this network namespace. The control groups below it belong to the machine.
mount --rbind /sys/fs/cgroup "$directory/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$directory/cgroup" /sys/fs/cgroup
umount --lazy "$directory/cgroup"
if [ -d /sys/fs/bpf ]; then mount -t bpf bpf /sys/fs/bpf; fi

tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
ip link set lo up
# Enable forwarding before a Docker engine starts. An engine that enables forwarding itself sets the policy of FORWARD
# to DROP.
echo 1 >/proc/sys/net/ipv4/ip_forward

echo ready
exec </dev/null >/dev/null 2>&1
while :; do
    sleep infinity &
    wait $!
done
