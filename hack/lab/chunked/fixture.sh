#!/usr/bin/env bash
# Makes pkg/ocibridge/testdata/chunked: small ostree-chunked images, written by
# the real ostree-ext, with what the real importer makes of them beside.
# Needs root (owners, capabilities), cargo, ostree, skopeo.
#
#   oci/                 layout with the tags
#     chunked            a commit layer and three chunks, xattrs objects as hard links
#     chunked-2025       the same commit in the layout in use since 2025-09 (EXPORT_RS)
#     derived            chunked plus one ordinary layer: additions, a replacement,
#                        a removal, a file below /etc
#   commit               checksum of the commit inside
#   *.ls                 `ostree ls -R -C -X` of the commit, and of the merge commit
#   *.refs               the refs that the import leaves, with their commits
#
# EXPORT_RS is explained in build-cli.sh; without it chunked-2025 is left out.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
top=$lab_dir/../..
out=$top/pkg/ocibridge/testdata/chunked
cli=$("$lab_dir/chunked/build-cli.sh")
cli2025=
[ -z "${EXPORT_RS:-}" ] || cli2025=$("$lab_dir/chunked/build-cli.sh")
cli=$(EXPORT_RS='' "$lab_dir/chunked/build-cli.sh")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go build -C "$top" -o "$work/ocilayout" ./hack/lab/ocilayout

# The tree: one of everything that an image's file system holds.
t=$work/tree
mkdir -p "$t"/{sysroot,boot,var,tmp,proc,usr/bin,usr/lib/modules/6.1.0-fixture,usr/share/doc,usr/etc/selinux/mini/contexts/files,usr/etc/selinux/mini/policy}
chmod 1777 "$t/tmp"
ln -s usr/bin "$t/bin"
ln -s sysroot/ostree "$t/ostree"
printf '#!/bin/sh\necho tool\n' >"$t/usr/bin/tool"
chmod 755 "$t/usr/bin/tool"
ln "$t/usr/bin/tool" "$t/usr/bin/tool-hardlink"
ln -s tool "$t/usr/bin/tool-symlink"
ln -s //usr/bin/tool "$t/usr/bin/tool-denormal"
printf 'suid\n' >"$t/usr/bin/suid"
chmod 4755 "$t/usr/bin/suid"
printf 'sgid\n' >"$t/usr/bin/sgid"
chown 0:50 "$t/usr/bin/sgid"
chmod 2755 "$t/usr/bin/sgid"
printf 'capable\n' >"$t/usr/bin/capable"
chmod 755 "$t/usr/bin/capable"
setcap cap_net_raw=ep "$t/usr/bin/capable"
printf 'owned\n' >"$t/usr/share/owned"
chown 1000:1001 "$t/usr/share/owned"
chmod 640 "$t/usr/share/owned"
# libostree before 2024.10 (Debian 12 has 2022.7) hashes the label last instead
# of in order, which no other version reproduces: names that sort before it.
printf 'attributed\n' >"$t/usr/share/attributed"
setfattr -n security.kedge -v value "$t/usr/share/attributed"
setfattr -n security.binary -v 0x00ff00 "$t/usr/share/attributed"
: >"$t/usr/share/empty"
: >"$t/usr/share/empty-too"
: >"$t/usr/share/empty-private"
chmod 600 "$t/usr/share/empty-private"
deep=$t/usr/share/doc/$(printf 'a-rather-long-directory-name-%.0s' 1 2 3)/$(printf 'and-another-%.0s' 1 2 3 4)
mkdir -p "$deep"
printf 'deep\n' >"$deep/$(printf 'a-long-file-name-%.0s' 1 2 3 4 5 6 7)"
ln -s "$(printf '../target-%.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14)" "$deep/long-symlink"
mkdir "$t/usr/share/empty-directory"
for i in 1 2 3; do
  seq $((i * 10000)) $((i * 10000 + 4000)) >"$t/usr/share/data-$i"
done
printf 'not a kernel\n' >"$t/usr/lib/modules/6.1.0-fixture/vmlinuz"
printf 'not an initramfs\n' >"$t/usr/lib/modules/6.1.0-fixture/initramfs.img"
printf 'NAME=fixture\nID=fixture\nPRETTY_NAME="Fixture 1"\nVERSION_ID=1\n' >"$t/usr/lib/os-release"
printf 'default\n' >"$t/usr/etc/setting"
printf 'secret\n' >"$t/usr/etc/shadow"
chmod 000 "$t/usr/etc/shadow"
mkdir "$t/usr/etc/setting.d"
printf 'drop-in\n' >"$t/usr/etc/setting.d/10-a.conf"
printf 'SELINUX=enforcing\nSELINUXTYPE=mini\n' >"$t/usr/etc/selinux/config"
printf 'not a policy\n' >"$t/usr/etc/selinux/mini/policy/policy.33"
cat >"$t/usr/etc/selinux/mini/contexts/files/file_contexts" <<'EOF'
/.*	system_u:object_r:default_t:s0
/etc(/.*)?	system_u:object_r:etc_t:s0
/etc/shadow	--	system_u:object_r:shadow_t:s0
/usr(/.*)?	system_u:object_r:usr_t:s0
/usr/etc(/.*)?	system_u:object_r:etc_t:s0
/usr/bin(/.*)?	system_u:object_r:bin_t:s0
/usr/lib/modules(/.*)?	system_u:object_r:modules_object_t:s0
/usr/share/empty[^/]*	--	system_u:object_r:empty_t:s0
/tmp	-d	system_u:object_r:tmp_t:s0
EOF
find "$t" -exec touch -h -d @0 {} +

# bare-user: libostree 2022.7 hands out xattrs of a bare repository unsorted, and
# the exporter copies them as they come.
repo=$work/repo
ostree init --repo="$repo" --mode=bare-user >/dev/null
commit=$(ostree commit --repo="$repo" --branch=fixture --tree=dir="$t" --selinux-policy="$t" \
  --timestamp='2025-01-02 03:04:05 +0000' --subject=fixture --bootable \
  --add-metadata-string=version=1 --add-metadata-string=ostree.linux=6.1.0-fixture)

# Three chunks by path; what is named in no chunk lies in the commit layer.
ostree ls -R -C --repo="$repo" "$commit" | awk '
  BEGIN { printf "{\"version\":1,\"created\":\"2025-01-02T03:04:05Z\",\"layers\":{\"bin\":\"tools\",\"share\":\"data\",\"rest\":\"everything else\"},\"mapping\":{" }
  $1 ~ /^[-l]/ {
    for (i = 1; i <= NF; i++) if (length($i) == 64) { sum = $i; path = $(i + 1) }
    if (sum in seen) next
    seen[sum] = 1
    chunk = path ~ /^\/usr\/bin/ ? "bin" : path ~ /^\/usr\/share/ ? "share" : "rest"
    printf "%s\"%s\":\"%s\"", n++ ? "," : "", sum, chunk
  }
  END { print "}}" }' >"$work/contentmeta.json"

rm -rf "$out"
mkdir -p "$out"
encapsulate() {
  "$1" container encapsulate --repo="$repo" --contentmeta="$work/contentmeta.json" \
    --label containers.bootc=1 --copymeta-opt=version "$commit" "oci:$out/oci:$2" >/dev/null
}
encapsulate "$cli" chunked
[ -z "$cli2025" ] || encapsulate "$cli2025" chunked-2025

d=$work/derived
mkdir -p "$d"/usr/{bin,share} "$d/etc/setting.d"
printf '#!/bin/sh\necho derived\n' >"$d/usr/bin/derived"
chmod 755 "$d/usr/bin/derived"
printf 'replaced\n' >"$d/usr/bin/tool"
chmod 755 "$d/usr/bin/tool"
: >"$d/usr/share/.wh.data-3"
printf 'derived drop-in\n' >"$d/etc/setting.d/20-b.conf"
find "$d" -exec touch -h -d @1735787045 {} +
"$work/ocilayout" --layout "$out/oci" --from chunked --root "$d" --tag derived

echo "$commit" >"$out/commit"
ostree ls -R -C -X --repo="$repo" "$commit" >"$out/chunked.ls"
for tag in chunked derived; do
  r=$work/import-$tag
  ostree init --repo="$r" --mode=bare >/dev/null
  "$cli" container image pull "$r" "ostree-unverified-image:oci:$out/oci:$tag" >/dev/null
  ostree refs --repo="$r" | grep -v '^ostree/container/image/' | sort | while read -r ref; do
    echo "$ref $(ostree rev-parse --repo="$r" "$ref")"
  done >"$out/$tag.refs"
  image=$(ostree refs --repo="$r" --list ostree/container/image | head -n 1)
  ostree ls -R -C -X --repo="$r" "$image" >"$out/$tag-merged.ls"
done
du -sh "$out" >&2
