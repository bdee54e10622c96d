#!/usr/bin/env bash
# Makes a root of Debian trixie with ukify, which makes unified kernel images, and
# with the stub of systemd that they begin with. Prints the directory; internal/lab
# runs ukify in it. Needs root; half a minute once, nothing afterwards.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
. "$lab_dir/steps.sh"

out=$kedge_cache/ukify-$(recipe_key "${BASH_SOURCE[0]}" "$lab_dir/steps.sh")
only_one ukify
if [ ! -e "$out" ]; then
  workplace ukify
  say "ukify of Debian trixie (mmdebstrap)"
  trixie minbase systemd-ukify,systemd-boot-efi "$work/root"
  mkdir "$work/root/work"
  chmod 755 "$work/root"
  mv -T "$work/root" "$out"
fi
echo "$out"
