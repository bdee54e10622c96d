#!/usr/bin/env bash
# Makes a minimal Debian with some packages as a tar in the cache, and prints its
# path: debian.sh SUITE PACKAGE… (root; a minute once for each set).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

# Every build gives the same bytes.
export SOURCE_DATE_EPOCH=1735689600
suite=$1
shift
include=$(IFS=,; echo "$*")
key=$({ echo "$suite $include"; cat "${BASH_SOURCE[0]}"; } | sha256sum | cut -c1-12)
out=$kedge_cache/debian-$key.tar
if [ ! -e "$out" ]; then
  say "a Debian $suite with $* (mmdebstrap)"
  new=$(mktemp "$out.new-XXXXXX")
  trap 'rm -f "$new" "$new.log"' EXIT
  mmdebstrap --mode=root --variant=minbase --include="$include" --format=tar \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
    --aptopt='Apt::Install-Recommends "false"' \
    "$suite" "$new" >"$new.log" 2>&1 || { tail -n 30 "$new.log" >&2; exit 1; }
  mv "$new" "$out"
fi
echo "$out"
