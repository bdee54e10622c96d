#!/usr/bin/env bash
# Makes the machine's base image once more with what composefs on the ostree backend
# needs: ostree of Debian sid (trixie's is built without composefs), in the
# initramfs too, and a prepare-root.conf that enables it. An OCI layout in the
# cache, tag "lab", with the lab's agent. Prints the layout's directory. Needs
# root; three minutes once, nothing afterwards.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

base=$("$lab_dir/base-image.sh" machine)
key=$(cat "${BASH_SOURCE[0]}" "$lab_dir"/agent/* <(echo "$base") | sha256sum | cut -c1-12)
out=$kedge_cache/base-composefs-$key
exec 9>"$kedge_cache/base-composefs.lock"
flock 9
if [ -e "$out/done" ]; then
  echo "$out/oci"
  exit 0
fi
rm -rf --one-file-system "$kedge_cache"/base-composefs-tmp.*
work=$(mktemp -d "$kedge_cache/base-composefs-tmp.XXXXXX")
root=$work/root
trap 'rm -rf --one-file-system "$work"' EXIT

say "1/3 the machine's base image, with ostree of Debian sid"
umoci raw unpack --image "$base:base" "$root" >/dev/null
# A mount namespace of its own: nothing to unmount, nothing that could leak out.
unshare --mount --propagation private bash -ec '
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
' - "$root" >"$work/apt.log" 2>&1 || { tail -n 30 "$work/apt.log" >&2; exit 1; }

say "2/3 initramfs (about 40 s)"
rm -rf "$root"/usr/lib/ostree/prepare-root.conf "$root"/{boot,var,run}
mkdir "$root"/{boot,var,run}
cat >"$root/usr/lib/ostree/prepare-root.conf" <<'CONF'
[composefs]
enabled = yes
CONF
kver=$(basename "$root"/lib/modules/*)
unshare --mount --propagation private bash -ec '
  for m in proc sys dev; do mount --rbind "/$m" "$1/$m"; done
  mount -t tmpfs tmpfs "$1/var"
  mkdir -m 1777 "$1/var/tmp"
  chroot "$1" dracut --force --no-hostonly --reproducible --zstd --add ostree \
    --kver "$2" "/usr/lib/modules/$2/initramfs.img"
' - "$root" "$kver" >"$work/dracut.log" 2>&1 || { tail -n 30 "$work/dracut.log" >&2; exit 1; }

say "3/3 OCI layout"
go build -C "$lab_dir/../.." -o "$work/ocilayout" ./hack/lab/ocilayout
install -D -m 755 "$lab_dir/agent/kedge-lab-agent" "$root/usr/libexec/kedge-lab-agent"
install -D -m 644 "$lab_dir/agent/kedge-lab-agent.service" "$root/usr/lib/systemd/system/kedge-lab-agent.service"
mkdir -p "$root/usr/lib/systemd/system/multi-user.target.wants"
ln -s ../kedge-lab-agent.service "$root/usr/lib/systemd/system/multi-user.target.wants/"
nice "$work/ocilayout" --layout "$work/oci" --label containers.bootc=1 --root "$root" --tag lab --compression zstd
rm -rf "$out"
mkdir "$out"
mv "$work/oci" "$out/oci"
touch "$out/done"
say "made $out/oci ($(du -sh "$out/oci" | cut -f1))"
echo "$out/oci"
