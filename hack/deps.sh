#!/usr/bin/env bash
# Installs the Debian packages that kedge's tests, demo and benchmarks call.
# Quick when everything is there; needs root otherwise. Set KEDGE_NO_DEPS=1 on
# a machine that brings its own (then a missing program skips or fails a test).
set -euo pipefail

packages=(
  # the oracles: programs that our bytes are held against
  ostree selinux-utils selinux-policy-default podman buildah skopeo umoci
  # what makes base images and disks
  mmdebstrap debian-archive-keyring e2fsprogs xfsprogs btrfs-progs dosfstools mtools fdisk
  erofs-utils zstd xz-utils cpio attr
  # what boots them; ipxe-qemu and seabios hold the option ROMs that QEMU insists on
  qemu-system-x86 qemu-utils ovmf ipxe-qemu seabios
  # sandboxes, crash tests, measuring
  bubblewrap crun fuse-overlayfs strace time
  # what single tests call
  db5.3-util gnupg grub-common groff-base openssl tar mount util-linux sbsigntool
  # building; a C compiler for the race detector alone
  ca-certificates git make gcc libc6-dev
  # systemctl, which enables units in images
  systemd
)

if [ "${KEDGE_NO_DEPS:-}" = 1 ]; then
  exit 0
fi

missing=()
for p in "${packages[@]}"; do
  case $(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null || true) in
    installed) ;;
    *) missing+=("$p") ;;
  esac
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

echo "deps: installing ${#missing[@]} Debian packages: ${missing[*]}"
if [ "$(id -u)" != 0 ]; then
  echo "deps: run this as root, or install them yourself: apt-get install ${missing[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 40 "$log" >&2
  echo "deps: apt-get failed (its last lines are above)" >&2
  exit 1
fi
echo "deps: done"
