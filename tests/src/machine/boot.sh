# Boots this host's own systemd beside it: boot.sh DIRECTORY. Run in a mount namespace of its own; the network is the caller's.
#
# The root is this host's under an overlay, so that nothing is written to it; there is a process table, a cgroup tree, a
# bpffs and a /run of its own. Of what the host has enabled nothing is started. Prints `machine PID` before systemd begins.
# SIGTERM turns it off.
set -eu

work=$1 # what is mounted there is in this mount namespace only

# What systemd would do to the host's kernel and devices is left out: units that are there are named, others never run.
strip() {
    rm -rf etc/systemd/system etc/systemd/*.conf.d etc/fstab usr/lib/systemd/system-generators usr/local/lib/systemd
    rm -rf var/log/journal etc/machine-id
    mkdir -p etc/systemd/system
    : >etc/machine-id
    find usr/lib/systemd/system/*.wants ! -type d ! -name 'systemd-journald*' ! -name 'systemd-tmpfiles-setup.service' \
        -delete
}

devices() {
    mount -t tmpfs -o mode=755,nosuid tmpfs dev
    for device in null zero full random urandom tty; do
        : >dev/$device
        mount --bind /dev/$device dev/$device
    done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
    mount -t tmpfs -o nosuid,nodev tmpfs dev/shm
    ln -s pts/ptmx dev/ptmx
}

# In namespaces of its own but for the network: $work/root becomes the root.
begin() {
    read -r own _ </proc/self/stat # as the host counts
    echo "machine $own"
    cd "$work/root"
    strip
    devices
    mount -t proc proc proc
    # Only what belongs to the network namespace may be set: the rest is the host's.
    mount --bind proc/sys proc/sys
    mount --bind proc/sys/net proc/sys/net
    mount -o remount,bind,ro proc/sys
    mount -t sysfs sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t bpf -o mode=700 bpf sys/fs/bpf
    mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp
    pivot_root . mnt
    umount -l mnt
    exec env -i container=spillway PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /usr/lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=0
}

if [ "${2:-}" = begin ]; then
    begin
fi

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$work"
cd "$work"
mkdir upper changes root cgroup
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=changes overlay root
mount -t cgroup2 cgroup2 cgroup
group=$work/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/spillway-machine-$$
mkdir "$group"
trap 'kill -KILL $child' TERM INT
(
    echo 0 >"$group/cgroup.procs"
    exec unshare --pid --cgroup --mount --uts --ipc --fork --kill-child sh "$0" "$work" begin
) &
child=$!
# Interrupted by the trap, and then again until it has ended.
while kill -0 $child 2>/dev/null; do
    wait $child || true
done
# The kernel lets go of a cgroup some time after its last process.
for _ in $(seq 100); do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && exit
    sleep 0.05
done
echo "cgroup ${group#"$work/cgroup"} is not removed" >&2
exit 1
