#!/usr/bin/env bash
# Makes the lab's base image: a bootable Debian trixie in the shape bootc asks
# for, as an OCI layout in the cache. Prints the layout's directory; what it
# does goes to stderr. Takes about four minutes once, nothing afterwards.
#
#   base-image.sh           of a realistic size, 650 MB
#   base-image.sh machine   what boots in a virtual machine and no more: there a
#                           test takes as long as the image is large
#
# Tags in the layout (the file system is the same in the first two):
#   base      one gzip layer
#   base20    twenty zstd layers (not of a machine's)
#   lab       base plus the lab's agent, which runs a test's scripts in the guest
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
. "$lab_dir/steps.sh"

name=base
kernel=linux-image-amd64
# The tools of a derived image's builder.
more=(podman dnf rpm)
if [ "${1:-}" = machine ]; then
  name=machine
  kernel=linux-image-cloud-amd64
  more=()
fi
packages=(
  # boots: kernel, init, an initramfs that mounts an ostree deployment
  "$kernel" systemd systemd-sysv systemd-resolved udev dbus kmod dracut ostree ostree-boot
  # talks to a registry, grows and checks disks
  ca-certificates iproute2 iputils-ping curl e2fsprogs xfsprogs btrfs-progs fdisk zstd
  systemd-boot fsverity attr procps less
  # a policy to label from, and to boot under
  selinux-policy-default policycoreutils
  "${more[@]}"
)

key=$(recipe_key "${BASH_SOURCE[0]}" "$lab_dir/steps.sh" "$lab_dir"/ocilayout/*.go)
out=$kedge_cache/$name-$key
layout=$out/oci
agent_key=$(recipe_key "$lab_dir"/agent/*)
only_one $name
if [ -e "$out/agent-$agent_key" ]; then
  echo "$layout"
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  say "making the base image needs root (owners, device nodes, chroot)"
  exit 1
fi
"$lab_dir/../deps.sh" >&2

workplace $name
root=$work/root

make_base() {
  say "1/4 Debian trixie from packages (mmdebstrap, about 100 s)"
  local include kver m l
  include=$(IFS=,; echo "${packages[*]}")
  # dracut's hook makes an initramfs in /boot that nobody wants: not compressing it
  # saves half a minute.
  trixie minbase "$include" "$root" \
    --setup-hook='mkdir -p "$1/etc/dracut.conf.d" && echo "compress=cat" >"$1/etc/dracut.conf.d/hook.conf"'

  say "2/4 initramfs (dracut with its ostree module, about 40 s)"
  kver=$(basename "$root"/lib/modules/*)
  rm "$root/etc/dracut.conf.d/hook.conf"
  make_initramfs "$root" ostree
  cp "$root/boot/vmlinuz-$kver" "$root/usr/lib/modules/$kver/vmlinuz"

  say "3/4 the tree: /usr is the system, /etc its defaults, /var and /boot empty"
  mkdir -p "$root"/usr/lib/{sysimage,ostree,tmpfiles.d}
  mv "$root/var/lib/dpkg" "$root/usr/lib/sysimage/dpkg"
  # The policy's module store lies in /var on Debian; a root that brings its own
  # must keep it beside the policy it belongs to.
  mv "$root/var/lib/selinux/default" "$root/etc/selinux/default/store"
  mkdir -p "$root/etc/selinux/modules-store"
  mv "$root/etc/selinux/default/store" "$root/etc/selinux/modules-store/default"
  sed -i '/^store-root/d' "$root/etc/selinux/semanage.conf"
  echo 'store-root = /etc/selinux/modules-store' >>"$root/etc/selinux/semanage.conf"
  rm -rf "$root"/boot "$root"/var "$root"/home "$root"/opt "$root"/root "$root"/srv "$root"/mnt \
    "$root"/dev "$root"/proc "$root"/sys "$root"/run "$root"/tmp "$root"/ostree
  mkdir -p "$root"/{boot,var,dev,proc,sys,run,sysroot}
  mkdir -m 1777 "$root/tmp"
  for l in ostree:sysroot/ostree home:var/home opt:var/opt root:var/roothome srv:var/srv mnt:var/mnt; do
    ln -s "${l#*:}" "$root/${l%%:*}"
  done
  cat >"$root/usr/lib/ostree/prepare-root.conf" <<'EOF'
[composefs]
enabled = no

[sysroot]
readonly = true
EOF
  cat >"$root/usr/lib/tmpfiles.d/image-var.conf" <<'EOF'
d /var/lib 0755 root root -
d /var/lib/dpkg 0755 root root -
d /var/log 0755 root root -
d /var/home 0755 root root -
d /var/opt 0755 root root -
d /var/srv 0755 root root -
d /var/mnt 0755 root root -
d /var/roothome 0700 root root -
EOF
  cat >"$root/etc/systemd/network/80-dhcp.network" <<'EOF'
[Match]
Type=ether

[Network]
DHCP=yes
EOF
  systemctl --root="$root" enable -q systemd-networkd systemd-resolved
  # Packages come with the image; nothing on the host looks for newer ones.
  systemctl --root="$root" disable -q apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer
  [ $name = machine ] || systemctl --root="$root" disable -q podman-auto-update.timer
  # What the image has made already; each new deployment would make it once more,
  # at every step of a test.
  systemctl --root="$root" mask -q ldconfig.service systemd-journal-catalog-update.service \
    systemd-hwdb-update.service
  ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
  if [ $name = machine ]; then
    rm -rf "$root"/usr/share/{man,locale,lintian}
    find "$root/usr/share/doc" -type f ! -name copyright -delete
  fi
  : >"$root/etc/machine-id"
  echo kedge-lab >"$root/etc/hostname"
  rm -f "$root"/etc/{fstab,mtab} "$root"/{vmlinuz,initrd.img}{,.old}
  # No password: the lab's guest is reachable through its console alone.
  sed -i 's/^root:[^:]*:/root::/' "$root/etc/shadow"

  say "4/4 OCI layout"
  pack "$work" --root "$root" --tag base --compression gzip
  [ $name = machine ] || pack "$work" --root "$root" --tag base20 --compression zstd --layers 20
  rm -rf "$out"
  mkdir "$out"
  mv "$work/oci" "$layout"
  touch "$out/done"
}

[ -e "$out/done" ] || make_base
# A layer of its own: changing the agent takes a second.
add_agent "$work/agent"
pack "$out" --from base --root "$work/agent" --tag lab --compression zstd
touch "$out/agent-$agent_key"
say "made $layout ($(du -sh "$layout" | cut -f1))"
echo "$layout"
