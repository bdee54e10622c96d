#!/usr/bin/env bash
# Makes the machine's base image once more for the composefs backend: without ostree, and
# with kedge's dracut module in the initramfs. An OCI layout in the cache with the
# tags
#   base   the root in one layer
#   lab    base plus a layer with the lab's agent and the kedge-initramfs of this
#          source tree, which is appended to the initramfs
# so that a change of the program costs seconds and not a run of dracut. Kernel and
# initramfs lie beside it too (modules/VERSION), for machines that run from them
# alone. Prints the layout's directory. Needs root; two minutes once.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
. "$lab_dir/steps.sh"

src=$(cd "$lab_dir/../.." && pwd)
module=$src/Containerfiles/debian-composefs/root/usr/lib/dracut/modules.d/50kedge
base=$("$lab_dir/base-image.sh" machine)
key=$(recipe_key "${BASH_SOURCE[0]}" "$lab_dir/steps.sh" "$module"/* <(basename "$(dirname "$base")"))
out=$kedge_cache/base-composefs-backend-$key
only_one base-composefs-backend
workplace base-composefs-backend
build_initramfs_program
top=$out/lab-$(recipe_key "$work/kedge-initramfs" "$lab_dir"/agent/*)
if [ -e "$top" ]; then
  echo "$out/oci"
  exit 0
fi

make_base() {
  say "1/3 the machine's base image, without ostree"
  local root=$work/root kver
  unpack_base "$base" "$root"
  # A mount namespace of its own: nothing to unmount, nothing that could leak out.
  logged unshare --mount --propagation private bash -ec '
    for m in proc sys dev; do mount --rbind "/$m" "$1/$m"; done
    for m in run var; do mount -t tmpfs tmpfs "$1/$m"; done
    mkdir -p "$1/var/lib" "$1/var/log"
    ln -s ../../usr/lib/sysimage/dpkg "$1/var/lib/dpkg"
    # The initramfs is made below; the packages need not make one in /boot.
    printf "#!/bin/sh\nexit 0\n" >"$1/run/dracut"
    chmod 755 "$1/run/dracut"
    mount --bind "$1/run/dracut" "$1/usr/bin/dracut"
    chroot "$1" dpkg --purge ostree ostree-boot
  ' - "$root"
  rm -rf --one-file-system "$root"/{ostree,boot,var,run} "$root/usr/lib/ostree"
  mkdir "$root"/{boot,var,run}

  say "2/3 initramfs (dracut with kedge's module, about 40 s)"
  mkdir -p "$root/usr/lib/dracut/modules.d" "$root/usr/lib/kedge"
  cp -r "$module" "$root/usr/lib/dracut/modules.d/"
  chmod 755 "$root/usr/lib/dracut/modules.d/50kedge/module-setup.sh"
  install -m 755 "$work/kedge-initramfs" "$root/usr/lib/kedge/"
  make_initramfs "$root" kedge

  say "3/3 OCI layout"
  pack "$work" --root "$root" --tag base --compression zstd
  rm -rf "$out"
  kver=$(basename "$root"/usr/lib/modules/*)
  mkdir -p "$out/modules/$kver"
  cp "$root/usr/lib/modules/$kver"/{vmlinuz,initramfs.img} "$out/modules/$kver/"
  mv "$work/oci" "$out/oci"
  touch "$out/done"
}

[ -e "$out/done" ] || make_base
add_initramfs_program "$out"/modules/*/initramfs.img "$work/layer"
add_agent "$work/layer"
pack "$out" --from base --root "$work/layer" --tag lab --compression zstd
rm -f "$out"/lab-*
touch "$top"
say "made $out/oci ($(du -sh "$out/oci" | cut -f1))"
echo "$out/oci"
