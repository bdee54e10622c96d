#!/usr/bin/env bash
# Runs cfsctl of composefs-rs, which writes the repositories that bootc's
# composefs backend uses:
#
#   hack/lab/cfsctl.sh --repo /tmp/repo fsck
#   hack/lab/cfsctl.sh --path     prints where the program is
#
# It is built once with cargo into the cache directory, from the release that
# follows the revision which bootc 1.16.9 pins (0fbc8533); what is on disk is
# the same. KEDGE_COMPOSEFS_RS=DIR builds a checkout instead, such as of that
# very revision. Needs cargo, a C compiler, pkg-config and libpcre2's headers or
# the sources that its crate brings.
set -euo pipefail

version=0.9.0
features=pre-6.15,oci

# shellcheck source=hack/lab/env.sh
. "$(dirname "$0")/env.sh"
key=$(recipe_key "$0")
source=${KEDGE_COMPOSEFS_RS:-}
if [ -n "$source" ]; then
  key=$key-$(find "$source/crates" -name '*.rs' -print0 | sort -z | xargs -0 cat | sha256sum | cut -c1-8)
fi
program=$kedge_cache/cfsctl-$key/bin/cfsctl

if [ ! -x "$program" ]; then
  mkdir -p "$kedge_cache"
  exec 9>"$kedge_cache/cfsctl.lock"
  flock 9
fi
if [ ! -x "$program" ]; then
  command -v cargo >/dev/null || { say "cfsctl: cargo is not installed"; exit 1; }
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  if [ -n "$source" ]; then
    from=(--path "$source/crates/composefs-ctl")
  else
    from=(composefs-ctl --version "$version" --locked)
  fi
  say "building cfsctl"
  if ! CARGO_TARGET_DIR=$work/target nice -n 15 cargo install "${from[@]}" --bin cfsctl \
    --no-default-features --features "$features" --root "$work/root" >"$work/log" 2>&1; then
    tail -n 20 "$work/log" >&2
    say "cfsctl: cargo cannot build it"
    exit 1
  fi
  mkdir -p "$kedge_cache/cfsctl-$key.new/bin"
  mv "$work/root/bin/cfsctl" "$kedge_cache/cfsctl-$key.new/bin/cfsctl"
  rm -rf "$kedge_cache/cfsctl-$key"
  mv -T "$kedge_cache/cfsctl-$key.new" "$kedge_cache/cfsctl-$key"
  rm -rf "$work"
  trap - EXIT
fi
exec 9>&- 2>/dev/null || true

if [ "${1:-}" = --path ]; then
  echo "$program"
  exit 0
fi
exec "$program" "$@"
