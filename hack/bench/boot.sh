# Boots the root of a host's default entry with its own systemd, as a container of
# this machine: what an initramfs mounts, and around it what systemd wants of a
# container. Runs in namespaces of its own.
#
#   boot.sh SYSROOT DIR KEDGE-INITRAMFS LAYOUT WORK AS OPTION…
#
# DIR is an empty directory; the root finds LAYOUT in /run/layout, and WORK in AS.
# The options are those of the kernel's command line.
set -eu
sysroot=$1 dir=$2 initramfs=$3 layout=$4 work=$5 as=$6
shift 6

case " $* " in
  *' ostree='*)
    link=${*##*ostree=}
    deployment=$(realpath "$sysroot/${link%% *}")
    mount --bind "$deployment" "$dir"
    mount --bind "${deployment%/deploy/*}/var" "$dir/var"
    mount --bind "$sysroot" "$dir/sysroot"
    mount --bind "$sysroot/boot" "$dir/boot"
    ;;
  *)
    "$initramfs" --sysroot "$sysroot" --cmdline "$*"
    dir=$sysroot
    ;;
esac

mount -t tmpfs -o mode=755 run "$dir/run"
case " $* " in *' ostree='*) : >"$dir/run/ostree-booted" ;; esac
mkdir "$dir/run/layout" "$dir$as"
mount --bind "$layout" "$dir/run/layout"
mount --bind "$work" "$dir$as"
mount -t tmpfs tmp "$dir/tmp"
mount -t proc proc "$dir/proc"
printf '%s\n' "$*" >"$dir/run/cmdline"
mount --bind "$dir/run/cmdline" "$dir/proc/cmdline"
# Nothing of this machine can be set from there.
mount --bind "$dir/proc/sys" "$dir/proc/sys"
mount -o remount,bind,ro "$dir/proc/sys"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$dir/sys"
mount -t cgroup2 cgroup2 "$dir/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$dir/dev"
for node in full null random tty urandom zero; do
  : >"$dir/dev/$node"
  mount --bind "/dev/$node" "$dir/dev/$node"
done
ln -s /proc/self/fd "$dir/dev/fd"
mkdir "$dir/dev/pts" "$dir/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$dir/dev/pts"
ln -s pts/ptmx "$dir/dev/ptmx"
mount -t tmpfs shm "$dir/dev/shm"
exec chroot "$dir" /usr/bin/env -i container=kedge-bench PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd "$@"
