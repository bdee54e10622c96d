#!/usr/bin/env bash
# Unpacks GRUB and shim for EFI, the ones that Debian signs for Secure Boot, as
# its packages ship them. Prints the directory that holds their usr; what it does
# goes to stderr. Ten seconds once, nothing afterwards.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

suite=trixie
packages=grub-efi-amd64-signed,shim-signed,shim-helpers-amd64-signed

out=$kedge_cache/grub-$(recipe_key "${BASH_SOURCE[0]}")
mkdir -p "$kedge_cache"
exec 9>"$kedge_cache/grub.lock"
flock 9
if [ ! -e "$out" ]; then
  rm -rf --one-file-system "$kedge_cache"/grub-tmp.*
  work=$(mktemp -d "$kedge_cache/grub-tmp.XXXXXX")
  trap 'rm -rf --one-file-system "$work"' EXIT
  say "GRUB and shim of Debian $suite (mmdebstrap)"
  mmdebstrap --mode=root --variant=extract --include="$packages" \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
    --aptopt='Apt::Install-Recommends "false"' \
    "$suite" "$work/root" >"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; exit 1; }
  mkdir -p "$work/new/usr/lib"
  cp -r "$work"/root/usr/lib/{grub,shim} "$work/new/usr/lib/"
  chmod 755 "$work/new"
  mv -T "$work/new" "$out"
fi
echo "$out"
