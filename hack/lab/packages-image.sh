#!/usr/bin/env bash
# Makes two small bootable images for stories about packages on hosts, in the
# cache, and prints the directory. Both boot on both backends: ostree's and kedge's
# dracut modules are in their initramfs. In the directory, for rpm and for deb:
#
#   rpm/oci         Debian's userland with dnf and rpm in the place of apt and dpkg; an
#                   RPM database with packages of the lab to override (lab-tool …)
#   deb/oci         a Debian with apt; dpkg's database in /usr/lib/sysimage/dpkg
#   */modules/*     their kernel and initramfs, for machines that run from them alone
#   rpm/repository  the lab's packages (packages.sh)
#   deb/repository  cron of Debian, with what it needs
#
# The layouts have the tags base and lab, as composefs-backend-image.sh says. Needs
# root; three minutes once.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
. "$lab_dir/steps.sh"

src=$(cd "$lab_dir/../.." && pwd)
module=$src/Containerfiles/debian-composefs/root/usr/lib/dracut/modules.d/50kedge
base=$("$lab_dir/base-image.sh")
packages=$("$lab_dir/packages.sh")
key=$(recipe_key "${BASH_SOURCE[0]}" "$lab_dir/steps.sh" "$module"/* <(basename "$(dirname "$base")") <(basename "$packages"))
out=$kedge_cache/packages-image-$key
only_one packages-image
workplace packages-image
build_initramfs_program
top=$out/lab-$(recipe_key "$work/kedge-initramfs" "$lab_dir"/agent/*)
if [ -e "$top" ]; then
  echo "$out"
  exit 0
fi

# inside ROOT SCRIPT: runs a script in a root, /var and /tmp on a tmpfs, with the
# network. In a mount namespace of its own: nothing to unmount, nothing that could
# leak out. Packages make no initramfs.
inside() {
  logged unshare --mount --propagation private bash -ec '
    for m in proc sys dev; do mount --rbind "/$m" "$1/$m"; done
    for m in run tmp var; do mount -t tmpfs tmpfs "$1/$m"; done
    mkdir -p "$1"/var/{lib,tmp,log/apt,cache/apt/archives/partial}
    ln -s ../../usr/lib/sysimage/dpkg "$1/var/lib/dpkg"
    install -D -m 644 /etc/resolv.conf "$1/run/systemd/resolve/stub-resolv.conf"
    mount --bind /bin/true "$1/usr/bin/dracut"
    exec chroot "$1" bash -ec "$2"
  ' - "$@"
}

# What is left of the base image; apt knows what that needs.
kept="apt linux-image-amd64 systemd systemd-sysv systemd-resolved udev dbus kmod dracut ostree ostree-boot
  ca-certificates golang-github-containers-image iproute2 e2fsprogs zstd fsverity attr procps passwd
  selinux-policy-default bubblewrap"
apt='export DEBIAN_FRONTEND=noninteractive
  get() { apt-get -y -o Acquire::Retries=3 -o APT::Install-Recommends=false -o APT::AutoRemove::RecommendsImportant=false "$@"; }
  keep() { apt-mark auto $(apt-mark showmanual) && apt-mark manual "$@" && get autopurge; }'

make_roots() {
  local root=$work/rpm-root deb=$work/deb-root kver
  say "1/4 the base image with less in it"
  unpack_base "$base" "$root"
  inside "$root" "$apt; get update; get install bubblewrap; keep $(echo $kept) dnf rpm"
  rm -rf --one-file-system "$root"/usr/share/{doc,man,locale,info} "$root"/etc/selinux/modules-store
  sed -i '\, /var/lib/dpkg ,d' "$root/usr/lib/tmpfiles.d/image-var.conf"
  # An emulated machine has few devices.
  kver=$(basename "$root"/usr/lib/modules/*)
  (
    cd "$root/usr/lib/modules/$kver/kernel"
    find drivers -mindepth 1 -maxdepth 1 ! -name virtio ! -name block ! -name char ! -name net ! -name firmware -exec rm -rf {} +
    find drivers/net -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
    rm -rf sound net/{bluetooth,mac80211,netfilter,sched,sunrpc,wireless}
  )

  say "2/4 initramfs (dracut with both modules, half a minute)"
  mkdir -p "$root/usr/lib/kedge"
  cp -r "$module" "$root/usr/lib/dracut/modules.d/"
  chmod 755 "$root/usr/lib/dracut/modules.d/50kedge/module-setup.sh"
  install -m 755 "$work/kedge-initramfs" "$root/usr/lib/kedge/"
  inside "$root" "depmod -a $kver"
  make_initramfs "$root" 'ostree kedge'

  say "3/4 package managers"
  cp -a --reflink=auto "$root" "$deb"
  mkdir -p "$work/deb/repository"
  inside "$deb" "$apt; keep $(echo $kept); get clean; get update; get install --download-only cron
    mkdir /usr/debs; cp /var/cache/apt/archives/*.deb /usr/debs"
  mv "$deb"/usr/debs/*.deb "$work/deb/repository/"
  rmdir "$deb/usr/debs"
  echo 'L /var/lib/dpkg - - - - ../../usr/lib/sysimage/dpkg' >>"$deb/usr/lib/tmpfiles.d/image-var.conf"
  (
    export SOURCE_DATE_EPOCH=1735689600
    # shellcheck source=hack/lab/packages/build.sh
    . "$lab_dir/packages/build.sh"
    deb_repository "$work/deb/repository"
  )
  rm -rf "$root"/usr/lib/sysimage/dpkg "$root/usr/bin"/{dpkg*,apt*} "$root/etc/apt"
  echo 'L /var/lib/rpm - - - - ../../usr/lib/sysimage/rpm' >>"$root/usr/lib/tmpfiles.d/image-var.conf"
  echo '%_dbpath /usr/lib/sysimage/rpm' >"$root/usr/lib/rpm/macros.d/macros.image"
  mkdir "$root/usr/rpms"
  cp "$packages"/base/lab-{base,tool,editor,settings}-*.rpm "$root/usr/rpms/"
  inside "$root" 'rpm --initdb; rpm -i --nosignature /usr/rpms/*.rpm'
  rm -rf "$root/usr/rpms"
  mkdir -p "$work/rpm"
  cp -al "$packages/rpm" "$work/rpm/repository"

  say "4/4 OCI layouts"
  local kind
  for kind in rpm deb; do
    root=$work/$kind-root
    rm -rf --one-file-system "$root"/{boot,var,run,tmp}
    mkdir "$root"/{boot,var,run}
    mkdir -m 1777 "$root/tmp"
    rm -f "$root"/etc/{passwd-,group-,shadow-,gshadow-,.pwd.lock}
    pack "$work/$kind" --root "$root" --tag base --compression zstd
    mkdir -p "$work/$kind/modules/$kver"
    cp "$root/usr/lib/modules/$kver"/{vmlinuz,initramfs.img} "$work/$kind/modules/$kver/"
  done
  rm -rf "$out"
  mkdir "$out"
  mv "$work"/{rpm,deb} "$out/"
  touch "$out/done"
}

[ -e "$out/done" ] || make_roots
add_initramfs_program "$out"/rpm/modules/*/initramfs.img "$work/layer"
add_agent "$work/layer"
for kind in rpm deb; do
  pack "$out/$kind" --from base --root "$work/layer" --tag lab --compression zstd
done
rm -f "$out"/lab-*
touch "$top"
say "made $out ($(du -sh "$out" | cut -f1))"
echo "$out"
