#!/usr/bin/env bash
# Builds the EROFS module for the kernel of the composefs backend's base image the
# way that kernels before 6.12 have it: it mounts block devices, and no files.
# The source is Debian's for that very kernel; everything else of the kernel stays
# as it is. Prints a directory in the cache that holds
#   erofs.ko.xz     the module, in the place that "path" names
#   path            of the module beneath a root
#   initramfs.cpio  the module alone, to be appended to an initramfs
# Needs root; two minutes once, nothing afterwards.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
. "$lab_dir/steps.sh"

base=$("$lab_dir/composefs-backend-image.sh")
kver=$(basename "$(dirname "$base")"/modules/*)
out=$kedge_cache/erofs-module-$(recipe_key "${BASH_SOURCE[0]}" "$lab_dir/steps.sh" <(echo "$kver"))
only_one erofs-module
if [ -e "$out" ]; then
  echo "$out"
  exit 0
fi
workplace erofs-module

say "1/2 a Debian trixie with the headers of Linux $kver and its source (mmdebstrap)"
root=$work/root
source=linux-source-${kver%%.*}.$(echo "$kver" | cut -d. -f2)
trixie minbase "linux-headers-$kver,$source,make,xz-utils" "$root"
# Another version's module would be one of other structures.
if ! grep -qF "${kver%%+*}" <(chroot "$root" dpkg-query --showformat='${Version}\n' --show "$source"); then
  say "Debian has the source of another kernel than $kver by now; the base image has to be made anew"
  exit 1
fi

say "2/2 the module"
tar -C "$root/tmp" -xf "$root/usr/src/$source.tar.xz" "$source/fs/erofs"
build=$root/tmp/$source/fs/erofs
# Every file includes this one, after the kernel's configuration.
sed -i '1a #undef CONFIG_EROFS_FS_BACKED_BY_FILE' "$build/internal.h"
logged bwrap --bind "$root" / --proc /proc --dev /dev --unshare-pid --unshare-net --die-with-parent --clearenv \
  --setenv PATH /usr/sbin:/usr/bin --setenv LC_ALL C.UTF-8 \
  nice make -j2 -C "/usr/src/linux-headers-$kver" M="/tmp/$source/fs/erofs" CONFIG_EROFS_FS_BACKED_BY_FILE= modules

new=$work/new
path=usr/lib/modules/$kver/kernel/fs/erofs/erofs.ko.xz
install -d "$new" "$work/tree/$(dirname "$path")"
strip --strip-debug "$build/erofs.ko"
xz --check=crc32 --stdout "$build/erofs.ko" >"$work/tree/$path"
cp "$work/tree/$path" "$new/"
echo "$path" >"$new/path"
(cd "$work/tree" && find . -mindepth 1 | sed 's,^\./,,' | sort |
  cpio --quiet --create --format newc --owner 0:0 --reproducible) >"$new/initramfs.cpio"
mv -T "$new" "$out"
say "made $out"
echo "$out"
