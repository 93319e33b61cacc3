#!/bin/sh
# The guest's first process: mounts the usual file systems, loads the modules, runs the phases and powers the machine
# off. The kernel's messages go to the first serial port, everything else to the second.
export PATH=/bin
export PODNET_BIN_DIR=/podnet PODNET_EBPF_OBJECT=/podnet/podnet-ebpf TMPDIR=/tmp

mkdir -p /proc /sys /dev /tmp /run /var/lib /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
exec </dev/null >/dev/ttyS1 2>&1
# Unchanged output, without carriage returns.
stty -F /dev/ttyS1 raw

while read -r module; do
    insmod "/modules/$module.ko" || echo "cannot load the module $module"
done </modules/order
hostname guest
mkdir -p /etc
hostname >/etc/hostname
# A hundred parallel pods need a pipe or two each.
ulimit -n 65536
ip link set lo up
echo "@@ kernel $(uname -r)"

# phase NAME SECONDS COMMAND…: runs a command with a timeout, and prints its exit status and duration.
phase() {
    name=$1 limit=$2
    shift 2
    echo "@@ begin $name"
    read -r start _ </proc/uptime
    timeout "$limit" "$@"
    status=$?
    read -r end _ </proc/uptime
    echo "@@ end $name $status $start $end"
}

. /phases
echo "@@ over"
# Flush the serial port first.
stty -F /dev/ttyS1 raw
sync
poweroff -f
