#!/usr/bin/env bash
# Unpacks GRUB and shim for EFI, the ones that Debian signs for Secure Boot, as
# its packages ship them. Prints the directory that holds their usr; what it does
# goes to stderr. Ten seconds once, nothing afterwards.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
. "$lab_dir/steps.sh"

out=$kedge_cache/grub-$(recipe_key "${BASH_SOURCE[0]}" "$lab_dir/steps.sh")
only_one grub
if [ ! -e "$out" ]; then
  workplace grub
  say "GRUB and shim of Debian trixie (mmdebstrap)"
  trixie extract grub-efi-amd64-signed,shim-signed,shim-helpers-amd64-signed "$work/root"
  mkdir -p "$work/new/usr/lib"
  cp -r "$work"/root/usr/lib/{grub,shim} "$work/new/usr/lib/"
  chmod 755 "$work/new"
  mv -T "$work/new" "$out"
fi
echo "$out"
