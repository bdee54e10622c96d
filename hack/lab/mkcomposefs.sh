#!/usr/bin/env bash
# Runs mkcomposefs, composefs-info or ostree of Debian sid, which Debian 12 and
# 13 do not have (ostree: not with composefs):
#
#   hack/lab/mkcomposefs.sh mkcomposefs --from-file dump image
#   hack/lab/mkcomposefs.sh --root      prints where the programs are
#
# The packages are unpacked once into the cache directory and run with their own
# dynamic loader, so neither root nor a chroot is needed to run them.
set -euo pipefail

programs=composefs,ostree
suite=sid

cache=${KEDGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kedge}
key=$(sha256sum "$0" | cut -c1-16)
root=$cache/composefs-$suite-$key

if [ ! -e "$root" ]; then
  mkdir -p "$cache"
  exec 9>"$cache/composefs-$suite.lock"
  flock 9
  if [ ! -e "$root" ]; then
    new=$(mktemp -d "$root.new-XXXXXX")
    log=$(mktemp)
    trap 'rm -rf "$new" "$log"' EXIT
    # sid's Release file may be older than it promises to be renewed.
    if ! mmdebstrap --variant=extract --include="$programs" --mode="$([ "$(id -u)" = 0 ] && echo root || echo unshare)" \
      --aptopt='Acquire::Check-Valid-Until "false"' "$suite" "$new" >"$log" 2>&1; then
      tail -n 20 "$log" >&2
      echo "mkcomposefs.sh: cannot unpack $programs of $suite" >&2
      exit 1
    fi
    chmod 755 "$new"
    touch "$new"
    mv -T "$new" "$root"
    # What an older version of this file made and nobody has used for two weeks.
    find "$cache" -mindepth 1 -maxdepth 1 -name "composefs-$suite-*" ! -path "$root" -type d -mtime +14 -exec rm -rf {} +
  fi
  exec 9>&-
fi

touch -c "$root" 2>/dev/null || true

if [ "${1:-}" = --root ]; then
  echo "$root"
  exit 0
fi
libs=$(dirname "$(echo "$root"/usr/lib/*/libcomposefs.so.1)")
exec "$(echo "$root"/usr/lib*/ld-linux*.so.*)" --library-path "$libs" "$root/usr/bin/$1" "${@:2}"
