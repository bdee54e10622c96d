# Sourced by the recipes of images: the steps that they have in common. Part of their
# keys. Each needs a workplace (env.sh).
# shellcheck shell=bash

# logged COMMAND…: runs a command, whose last lines are shown where it fails.
logged() {
  "$@" >"$work/log" 2>&1 9>&- || { tail -n 30 "$work/log" >&2; exit 1; }
}

# trixie VARIANT PACKAGES ROOT [OPTION…]: a root of Debian trixie; packages with commas.
trixie() {
  logged mmdebstrap --mode=root --variant="$1" --include="$2" "${@:4}" \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
    --aptopt='Apt::Install-Recommends "false"' trixie "$3"
}

# unpack_base LAYOUT ROOT: the root of the image with the tag base.
unpack_base() {
  logged umoci raw unpack --image "$1:base" "$2"
}

# make_initramfs ROOT MODULES: an initramfs for the root's kernel, with these modules of
# dracut beside its own. In a mount namespace: nothing to unmount, nothing that could
# leak out.
make_initramfs() {
  logged unshare --mount --propagation private bash -ec '
    for m in proc sys dev; do mount --rbind "/$m" "$1/$m"; done
    mount -t tmpfs tmpfs "$1/var"
    mkdir -m 1777 "$1/var/tmp"
    chroot "$1" dracut --force --no-hostonly --reproducible --zstd --add "$2" \
      --kver "$3" "/usr/lib/modules/$3/initramfs.img"
  ' - "$1" "$2" "$(basename "$1"/usr/lib/modules/*)"
}

# add_agent ROOT: the lab's agent, which runs a test's scripts in the guest.
add_agent() {
  install -D -m 755 "$lab_dir/agent/kedge-lab-agent" "$1/usr/libexec/kedge-lab-agent"
  install -D -m 644 "$lab_dir/agent/kedge-lab-agent.service" "$1/usr/lib/systemd/system/kedge-lab-agent.service"
  mkdir -p "$1/usr/lib/systemd/system/multi-user.target.wants"
  ln -s ../kedge-lab-agent.service "$1/usr/lib/systemd/system/multi-user.target.wants/"
}

# build_initramfs_program: kedge-initramfs of this source tree, in work.
build_initramfs_program() {
  CGO_ENABLED=0 go build -C "$lab_dir/../.." -trimpath -buildvcs=false -ldflags '-s -w' \
    -o "$work/kedge-initramfs" ./cmd/kedge-initramfs
}

# add_initramfs_program INITRAMFS ROOT: the program that was built, and the initramfs
# with it: the kernel unpacks archives one after the other, each from a multiple of
# four bytes, and what comes later replaces what came before.
add_initramfs_program() {
  local image
  image=$2/usr/lib/modules/$(basename "$(dirname "$1")")/initramfs.img
  install -D -m 600 "$1" "$image"
  install -D -m 755 "$work/kedge-initramfs" "$2/usr/lib/kedge/kedge-initramfs"
  truncate -s %4 "$image"
  (cd "$2" && printf '%s\n' usr usr/lib usr/lib/kedge usr/lib/kedge/kedge-initramfs |
    cpio --quiet --create --format newc --owner 0:0 --reproducible) >>"$image"
}

# pack DIR OPTION…: an image in the layout DIR/oci (hack/lab/ocilayout).
pack() {
  [ -e "$work/ocilayout" ] || go build -C "$lab_dir/../.." -o "$work/ocilayout" ./hack/lab/ocilayout
  nice "$work/ocilayout" --layout "$1/oci" --label containers.bootc=1 "${@:2}"
}
