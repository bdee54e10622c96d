#!/usr/bin/env bash
# Makes the machine's base image once more with what composefs on the ostree backend
# needs: ostree of Debian sid (trixie's is built without composefs), in the
# initramfs too, and a prepare-root.conf that enables it. An OCI layout in the
# cache, tag "lab", with the lab's agent. Prints the layout's directory. Needs
# root; three minutes once, nothing afterwards.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
. "$lab_dir/steps.sh"

base=$("$lab_dir/base-image.sh" machine)
key=$(recipe_key "${BASH_SOURCE[0]}" "$lab_dir/steps.sh" "$lab_dir"/agent/* <(echo "$base"))
out=$kedge_cache/base-composefs-$key
only_one base-composefs
if [ -e "$out/done" ]; then
  echo "$out/oci"
  exit 0
fi
workplace base-composefs
root=$work/root

say "1/3 the machine's base image, with ostree of Debian sid"
unpack_base "$base" "$root"
# A mount namespace of its own: nothing to unmount, nothing that could leak out.
logged unshare --mount --propagation private bash -ec '
  root=$1
  for m in proc sys dev; do mount --rbind "/$m" "$root/$m"; done
  mount -t tmpfs tmpfs "$root/run"
  install -D -m 644 /etc/resolv.conf "$root/run/systemd/resolve/stub-resolv.conf"
  chroot "$root" bash -ec "
    export DEBIAN_FRONTEND=noninteractive
    mkdir -p /var/lib/apt /var/cache /var/log
    ln -s /usr/lib/sysimage/dpkg /var/lib/dpkg
    sed -n \"s/ trixie / sid /p\" /etc/apt/sources.list >/run/sid.list
    get() { apt-get -o Dir::Etc::SourceList=/run/sid.list -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3 \"\$@\"; }
    get update
    get install -y --no-install-recommends -o Dpkg::Options::=--force-confold ostree ostree-boot
  "
' - "$root"

say "2/3 initramfs (about 40 s)"
rm -rf "$root"/usr/lib/ostree/prepare-root.conf "$root"/{boot,var,run}
mkdir "$root"/{boot,var,run}
cat >"$root/usr/lib/ostree/prepare-root.conf" <<'CONF'
[composefs]
enabled = yes
CONF
make_initramfs "$root" ostree

say "3/3 OCI layout"
add_agent "$root"
pack "$work" --root "$root" --tag lab --compression zstd
rm -rf "$out"
mkdir "$out"
mv "$work/oci" "$out/oci"
touch "$out/done"
say "made $out/oci ($(du -sh "$out/oci" | cut -f1))"
echo "$out/oci"
