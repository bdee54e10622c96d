#!/usr/bin/env bash
# Builds the command line of the crate ostree-ext, the program that makes
# Fedora-style chunked images, and prints its path. Needs cargo; two minutes
# once, nothing afterwards.
#
# EXPORT_RS=FILE builds it with another version of the crate's tar/export.rs:
# the crate as published writes file-xattrs as hard links, images since 2025-09
# have regular files there. That version is crates/ostree-ext/src/tar/export.rs
# of github.com/bootc-dev/bootc.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../env.sh"
here=$lab_dir/chunked

key=$(recipe_key "$here/Cargo.toml" "$here/Cargo.lock" "$here/src/main.rs" ${EXPORT_RS:+"$EXPORT_RS"})
bin=$kedge_cache/ostree-ext-cli-$key
if [ -x "$bin" ]; then
  echo "$bin"
  exit 0
fi
if ! command -v cargo >/dev/null; then
  say "building ostree-ext-cli needs cargo"
  exit 1
fi
if ! pkg-config --exists ostree-1 libzstd openssl glib-2.0; then
  say "installing the libraries that the crate links"
  { apt-get update && apt-get install -y --no-install-recommends pkg-config libostree-dev libzstd-dev libssl-dev; } >&2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$here"/{Cargo.toml,Cargo.lock,src} "$work"
if [ -n "${EXPORT_RS:-}" ]; then
  cargo vendor --quiet --manifest-path "$work/Cargo.toml" --locked "$work/vendor" >/dev/null
  cp -r "$work/vendor/ostree-ext" "$work/ostree-ext"
  cp "$EXPORT_RS" "$work/ostree-ext/src/tar/export.rs"
  # Its two functions took one argument more since: whether parents get entries.
  sed -i -E 's/(export_(final_)?chunk\(repo, commit, [a-z.]+, &mut w)\)/\1, false)/' \
    "$work/ostree-ext/src/container/encapsulate.rs"
  printf '\n[patch.crates-io]\nostree-ext = { path = "ostree-ext" }\n' >>"$work/Cargo.toml"
fi
say "building ostree-ext-cli (cargo, about two minutes)"
cargo build --release --manifest-path "$work/Cargo.toml" --target-dir "$work/target" >"$work/log" 2>&1 ||
  { tail -n 30 "$work/log" >&2; exit 1; }
mkdir -p "$kedge_cache"
install -m 755 "$work/target/release/ostree-ext-cli" "$bin"
echo "$bin"
