#!/usr/bin/busybox sh
# The guest's process 1: what an init system sets up, the tests, the power off.
# The kernel's command line says who runs the tests: suite=root or suite=plain.
export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8 NSBOX_MUST_RUN=host
export HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
plain_id=4711 # image.py has it in /etc/passwd

/usr/bin/busybox --install -s # links; what is there already stays
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mkdir /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount --make-rshared /
# As systemd does it, but that one can see who gets one.
printf '#!/usr/bin/busybox sh\necho "$1" >>/tmp/cores\n' >/run/core
chmod 755 /run/core
echo '|/run/core %P' >/proc/sys/kernel/core_pattern
ip link set lo up
hostname guest

# As systemd does it: a subtree with all controllers for each caller, and processes only in
# its leaves. Whoever may move processes about in a subtree owns these files: cgroups(7).
cd /sys/fs/cgroup
controllers=$(sed 's/[^ ]*/+&/g' cgroup.controllers)
echo "$controllers" >cgroup.subtree_control
mkdir -p root/tests plain/tests
echo "$controllers" >root/cgroup.subtree_control
echo "$controllers" >plain/cgroup.subtree_control
for directory in plain plain/tests; do
	chown $plain_id:$plain_id $directory $directory/cgroup.procs \
		$directory/cgroup.subtree_control $directory/cgroup.threads
done
cd /nsbox

case $suite in
root) as="env HOME=/root" ;;
plain) as="/usr/bin/setpriv --reuid $plain_id --regid $plain_id --clear-groups env HOME=/home" ;;
esac
(
	echo 0 >/sys/fs/cgroup/$suite/tests/cgroup.procs
	# shellcheck disable=SC2086 # words, on purpose
	xargs -0 -a "arguments.$suite" $as \
		python3 -m pytest --color=no -p no:cacheprovider --junitxml=/tmp/report.xml
)
for port in /dev/vport*; do # the only one
	cat /tmp/report.xml >"$port"
done
poweroff -f
