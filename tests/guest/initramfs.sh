#!/usr/bin/busybox sh
# The guest's first program: modules, then the disk as the root file system.
/usr/bin/busybox --install -s
mount -t proc proc /proc
for module in /modules/*.ko; do
	insmod "$module"
done
mount -t devtmpfs dev /dev
mount -t ext4 /dev/vda /root
umount /dev /proc
exec switch_root /root /nsbox/tests/guest/init.sh
