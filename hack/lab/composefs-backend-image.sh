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

src=$(cd "$lab_dir/../.." && pwd)
module=$src/Containerfiles/debian-composefs/root/usr/lib/dracut/modules.d/50kedge
base=$("$lab_dir/base-image.sh" machine)
key=$(cat "${BASH_SOURCE[0]}" "$module"/* <(basename "$(dirname "$base")") | sha256sum | cut -c1-12)
out=$kedge_cache/base-composefs-backend-$key
exec 9>"$kedge_cache/base-composefs-backend.lock"
flock 9
rm -rf --one-file-system "$kedge_cache"/base-composefs-backend-tmp.*
work=$(mktemp -d "$kedge_cache/base-composefs-backend-tmp.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT

CGO_ENABLED=0 go build -C "$src" -trimpath -buildvcs=false -ldflags '-s -w' \
  -o "$work/kedge-initramfs" ./cmd/kedge-initramfs
top=$out/lab-$(recipe_key "$work/kedge-initramfs" "$lab_dir"/agent/*)
if [ -e "$top" ]; then
  echo "$out/oci"
  exit 0
fi
go build -C "$src" -o "$work/ocilayout" ./hack/lab/ocilayout
pack() { nice "$work/ocilayout" --layout "$1/oci" --label containers.bootc=1 --compression zstd "${@:2}"; }

make_base() {
  say "1/3 the machine's base image, without ostree"
  local root=$work/root kver
  umoci raw unpack --image "$base:base" "$root" >"$work/umoci.log" 2>&1 || { cat "$work/umoci.log" >&2; exit 1; }
  # A mount namespace of its own: nothing to unmount, nothing that could leak out.
  unshare --mount --propagation private bash -ec '
    for m in proc sys dev; do mount --rbind "/$m" "$1/$m"; done
    for m in run var; do mount -t tmpfs tmpfs "$1/$m"; done
    mkdir -p "$1/var/lib" "$1/var/log"
    ln -s ../../usr/lib/sysimage/dpkg "$1/var/lib/dpkg"
    # The initramfs is made below; the packages need not make one in /boot.
    printf "#!/bin/sh\nexit 0\n" >"$1/run/dracut"
    chmod 755 "$1/run/dracut"
    mount --bind "$1/run/dracut" "$1/usr/bin/dracut"
    chroot "$1" dpkg --purge ostree ostree-boot
  ' - "$root" >"$work/dpkg.log" 2>&1 || { tail -n 30 "$work/dpkg.log" >&2; exit 1; }
  rm -rf --one-file-system "$root"/{ostree,boot,var,run} "$root/usr/lib/ostree"
  mkdir "$root"/{boot,var,run}

  say "2/3 initramfs (dracut with kedge's module, about 40 s)"
  mkdir -p "$root/usr/lib/dracut/modules.d" "$root/usr/lib/kedge"
  cp -r "$module" "$root/usr/lib/dracut/modules.d/"
  chmod 755 "$root/usr/lib/dracut/modules.d/50kedge/module-setup.sh"
  install -m 755 "$work/kedge-initramfs" "$root/usr/lib/kedge/"
  kver=$(basename "$root"/usr/lib/modules/*)
  unshare --mount --propagation private bash -ec '
    for m in proc sys dev; do mount --rbind "/$m" "$1/$m"; done
    mount -t tmpfs tmpfs "$1/var"
    mkdir -m 1777 "$1/var/tmp"
    chroot "$1" dracut --force --no-hostonly --reproducible --zstd --add kedge \
      --kver "$2" "/usr/lib/modules/$2/initramfs.img"
  ' - "$root" "$kver" >"$work/dracut.log" 2>&1 || { tail -n 30 "$work/dracut.log" >&2; exit 1; }

  say "3/3 OCI layout"
  pack "$work" --root "$root" --tag base
  rm -rf "$out"
  mkdir -p "$out/modules/$kver"
  cp "$root/usr/lib/modules/$kver"/{vmlinuz,initramfs.img} "$out/modules/$kver/"
  mv "$work/oci" "$out/oci"
  touch "$out/done"
}

# The kernel unpacks archives one after the other, each from a multiple of four
# bytes, and what comes later replaces what came before.
add_program() {
  local layer=$work/layer kver image
  kver=$(basename "$out"/modules/*)
  image=$layer/usr/lib/modules/$kver/initramfs.img
  install -D -m 600 "$out/modules/$kver/initramfs.img" "$image"
  install -D -m 755 "$work/kedge-initramfs" "$layer/usr/lib/kedge/kedge-initramfs"
  truncate -s %4 "$image"
  (cd "$layer" && printf '%s\n' usr usr/lib usr/lib/kedge usr/lib/kedge/kedge-initramfs |
    cpio --quiet --create --format newc --owner 0:0 --reproducible) >>"$image"
  install -D -m 755 "$lab_dir/agent/kedge-lab-agent" "$layer/usr/libexec/kedge-lab-agent"
  install -D -m 644 "$lab_dir/agent/kedge-lab-agent.service" "$layer/usr/lib/systemd/system/kedge-lab-agent.service"
  mkdir -p "$layer/usr/lib/systemd/system/multi-user.target.wants"
  ln -s ../kedge-lab-agent.service "$layer/usr/lib/systemd/system/multi-user.target.wants/"
  pack "$out" --from base --root "$layer" --tag lab
  rm -f "$out"/lab-*
  touch "$top"
}

[ -e "$out/done" ] || make_base
add_program
say "made $out/oci ($(du -sh "$out/oci" | cut -f1))"
echo "$out/oci"
