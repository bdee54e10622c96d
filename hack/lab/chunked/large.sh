#!/usr/bin/env bash
# Makes the base image once more as an ostree-chunked image of 40 layers, with
# the real ostree-ext, as an OCI layout in the cache (tag "chunked"). Prints the
# layout's directory. Needs root and cargo; two minutes once, nothing afterwards.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
layers=40

base=$("$lab_dir/base-image.sh")
cli=$(EXPORT_RS='' "$lab_dir/chunked/build-cli.sh")
key=$(cat "${BASH_SOURCE[0]}" <(echo "$base" "$(basename "$cli")") | sha256sum | cut -c1-12)
out=$kedge_cache/chunked-$key
exec 9>"$kedge_cache/chunked.lock"
flock 9
if [ -e "$out/done" ]; then
  echo "$out/oci"
  exit 0
fi
rm -rf "$kedge_cache"/chunked-tmp.*
work=$(mktemp -d "$kedge_cache/chunked-tmp.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT

say "1/3 committing the base image's tree"
umoci raw unpack --image "$base:base" "$work/tree" >/dev/null
# What a compose leaves to the deployment is not in a commit.
rm -rf "$work"/tree/{dev,proc,run,sys}/*
mv "$work/tree/etc" "$work/tree/usr/etc"
repo=$work/repo
ostree init --repo="$repo" --mode=bare-user >/dev/null
commit=$(ostree commit --repo="$repo" --branch=base --tree=dir="$work/tree" --consume \
  --selinux-policy="$work/tree" --bootable --add-metadata-string=version=13)

say "2/3 sharing the objects out over $layers chunks of like size, in path order"
ostree ls -R -C --repo="$repo" "$commit" | awk -v want="$layers" '
  BEGIN { n = c = 0 }
  $1 ~ /^[-l]/ && !($5 in seen) { seen[$5] = 1; sum[n] = $5; size[n] = $4 + 512; left += size[n++] }
  END {
    printf "{\"version\":1,\"mapping\":{"
    for (i = 0; i < n; i++) {
      printf "%s\"%s\":\"chunk%d\"", i ? "," : "", sum[i], c
      full += size[i]
      if (c < want - 1 && i < n - 1 && full >= left / (want - c)) { c++; left -= full; full = 0 }
    }
    printf "},\"layers\":{"
    for (i = 0; i <= c; i++) printf "%s\"chunk%d\":\"part %d\"", i ? "," : "", i, i
    print "}}"
  }' >"$work/contentmeta.json"

say "3/3 writing the image (ostree-ext-cli)"
"$cli" container encapsulate --repo="$repo" --contentmeta="$work/contentmeta.json" --compression-fast \
  --label containers.bootc=1 "$commit" "oci:$work/oci:chunked" >/dev/null
rm -rf "$out"
mkdir "$out"
mv "$work/oci" "$out/oci"
echo "$commit" >"$out/commit"
touch "$out/done"
say "made $out/oci ($(du -sh "$out/oci" | cut -f1))"
echo "$out/oci"
