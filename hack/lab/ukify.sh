#!/usr/bin/env bash
# Makes a root of Debian trixie with ukify, which makes unified kernel images, and
# with the stub of systemd that they begin with. Prints the directory; internal/lab
# runs ukify in it. Needs root; half a minute once, nothing afterwards.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

suite=trixie
packages=systemd-ukify,systemd-boot-efi

out=$kedge_cache/ukify-$(recipe_key "${BASH_SOURCE[0]}")
mkdir -p "$kedge_cache"
exec 9>"$kedge_cache/ukify.lock"
flock 9
if [ ! -e "$out" ]; then
  rm -rf --one-file-system "$kedge_cache"/ukify-tmp.*
  work=$(mktemp -d "$kedge_cache/ukify-tmp.XXXXXX")
  trap 'rm -rf --one-file-system "$work"' EXIT
  say "ukify of Debian $suite (mmdebstrap)"
  mmdebstrap --mode=root --variant=minbase --include="$packages" \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
    --aptopt='Apt::Install-Recommends "false"' \
    "$suite" "$work/root" >"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; exit 1; }
  mkdir "$work/root/work"
  chmod 755 "$work/root"
  mv -T "$work/root" "$out"
fi
echo "$out"
