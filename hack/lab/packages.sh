#!/usr/bin/env bash
# Makes what client-side packages are tested with, in the cache, and prints the
# directory; what it does goes to stderr. Two to four minutes once.
#
#   apt.tar   a small Debian trixie in the shape of a bootable image, dpkg's database
#             in /usr/lib/sysimage/dpkg, no package lists
#   dnf.tar   the same programs with dnf and rpm in the place of apt and dpkg: an
#             RPM database in /usr/lib/sysimage/rpm, some packages of the lab in it
#   dnf5.tar  the same of Debian sid, with dnf5 in the place of dnf and without
#             its Python modules
#   deb/      an apt repository of the lab's packages (packages/fixtures.sh)
#   rpm/      a dnf repository of the same packages
#   deb-signed/, deb-forged/
#             the same, signed with keys/lab.asc and with another key
#   rpm-signed/
#             lab-anchor, signed with keys/lab.asc; lab-bonus, with another key;
#             lab-postbird, not signed
#   base/     the packages that are in both roots, as deb and rpm
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# Every build of the roots and of the packages gives the same bytes.
export SOURCE_DATE_EPOCH=1735689600

key=$(recipe_key "${BASH_SOURCE[0]}" "$lab_dir"/packages/*.sh)
out=$kedge_cache/packages-$key
only_one packages
if [ -e "$out/done" ]; then
  echo "$out"
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  say "making roots needs root (owners, chroot)"
  exit 1
fi
"$lab_dir/../deps.sh" >&2

workplace packages

# debian DIR SUITE PACKAGE…: unpacks a minimal Debian with these packages.
debian() {
  mkdir "$1"
  tar -C "$1" --xattrs --xattrs-include='*' --exclude='./dev/*' -xf "$("$lab_dir/packages/debian.sh" "${@:2}")"
}

# inside ROOT COMMAND…: runs a command in a root, $work bound at /work.
inside() {
  local root=$1
  shift
  bwrap --bind "$root" / --proc /proc --dev /dev --tmpfs /run --perms 1777 --tmpfs /tmp --dir /work --bind "$work" /work \
    --unshare-pid --unshare-net --die-with-parent --clearenv \
    --setenv PATH /usr/sbin:/usr/bin --setenv LC_ALL C.UTF-8 --setenv HOME /tmp \
    --setenv SOURCE_DATE_EPOCH "$SOURCE_DATE_EPOCH" "$@" 9>&-
}

# image ROOT: the shape of a bootable image. /usr and /etc are the system.
image() {
  local root=$1 l
  rm -rf --one-file-system "$root"/{boot,var,home,opt,root,srv,mnt,media,dev,proc,sys,run,tmp,work,ostree}
  mkdir -p "$root"/{boot,var,dev,proc,sys,run,sysroot}
  mkdir -m 1777 "$root/tmp"
  for l in ostree:sysroot/ostree home:var/home opt:var/opt root:var/roothome srv:var/srv mnt:var/mnt; do
    ln -s "${l#*:}" "$root/${l%%:*}"
  done
  mkdir -p "$root/usr/lib/tmpfiles.d"
  cat >"$root/usr/lib/tmpfiles.d/image-var.conf" <<'END'
d /var/lib 0755 root root -
d /var/log 0755 root root -
d /var/cache 0755 root root -
d /var/home 0755 root root -
d /var/opt 0755 root root -
d /var/srv 0755 root root -
d /var/mnt 0755 root root -
d /var/roothome 0700 root root -
d /var/tmp 1777 root root -
END
  echo "made when the image was built" >"$root/usr/lib/modules/6.0.0-lab/initramfs.img"
  : >"$root/etc/machine-id"
  rm -f "$root"/etc/{resolv.conf,hostname,passwd-,group-,shadow-,gshadow-,.pwd.lock}
}

archive() { tar -C "$1" --numeric-owner --xattrs --xattrs-include='security.capability' --sort=name -cf "$2" .; }

. "$lab_dir/packages/fixtures.sh"
. "$lab_dir/packages/build.sh"

# What the lab's packages call, and what a kernel needs.
common=(systemd-standalone-sysusers systemd-standalone-tmpfiles dracut-core kmod)
say "1/4 a Debian with apt"
apt_root=$work/apt-root
debian "$apt_root" trixie "${common[@]}"
say "2/4 Debians with rpm and dnf, and dnf5"
dnf_root=$work/dnf-root
debian "$dnf_root" trixie rpm dnf createrepo-c "${common[@]}"
dnf5_root=$work/dnf5-root
debian "$dnf5_root" sid rpm dnf5 "${common[@]}"
say "3/4 packages"
mkdir -p "$work"/{deb,rpm,rpm-signed,base,spec,stage,keys}
fixtures
bulk 1000
build_rpms "$dnf_root"
build_repositories "$dnf_root"
sign_repositories "$dnf_root"
say "4/4 roots"
mkdir -p "$apt_root/usr/lib/sysimage"
inside "$apt_root" sh -c 'dpkg -i /work/base/*.deb' >"$work/dpkg.log" 2>&1 || { tail "$work/dpkg.log" >&2; exit 1; }
mv "$apt_root/var/lib/dpkg" "$apt_root/usr/lib/sysimage/dpkg"
image "$apt_root"
# Debian's rpm and dnf without dpkg and apt: what an RPM distribution has.
for root in "$dnf_root" "$dnf5_root"; do
  mkdir -p "$root/usr/lib/sysimage"
  rm -rf "$root/var/lib/dpkg" "$root/usr/bin"/{dpkg*,apt*} "$root/etc/apt" "$root/var/lib/rpm"
  echo '%_dbpath /usr/lib/sysimage/rpm' >"$root/usr/lib/rpm/macros.d/macros.image"
  inside "$root" sh -c 'rpm --initdb && rpm -i --nosignature /work/base/*.rpm' >"$work/rpm.log" 2>&1 || { tail "$work/rpm.log" >&2; exit 1; }
  image "$root"
done
rm -rf "$dnf5_root"/usr/lib/python3*/dist-packages/{rpm,libdnf5}
archive "$apt_root" "$work/apt.tar"
archive "$dnf_root" "$work/dnf.tar"
archive "$dnf5_root" "$work/dnf5.tar"
rm -rf --one-file-system "$out"
mkdir "$out"
mv "$work"/{apt.tar,dnf.tar,dnf5.tar,deb,deb-signed,deb-forged,rpm,rpm-signed,keys,base} "$out/"
touch "$out/done"
say "made $out ($(du -sh "$out" | cut -f1))"
echo "$out"
