# Sourced by the lab's scripts: where made things are kept, under which key, and
# who makes them.
# shellcheck shell=bash
lab_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kedge_cache=${KEDGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kedge}

# recipe_key FILE…: the first 12 hex digits of a hash over the files that make
# something, so that a changed recipe makes a new one beside the old.
recipe_key() {
  cat -- "$@" | sha256sum | cut -c1-12
}

say() { echo "lab: $*" >&2; }

# only_one NAME: waits while another process makes NAME. The lock is file descriptor
# 9, until this process ends.
only_one() {
  mkdir -p "$kedge_cache"
  exec 9>"$kedge_cache/$1.lock"
  flock 9
}

# workplace NAME: sets work to a new directory in the cache, which goes with this
# process, and removes what an earlier one left. For him who holds NAME's lock.
workplace() {
  rm -rf --one-file-system "$kedge_cache/$1"-tmp.*
  work=$(mktemp -d "$kedge_cache/$1-tmp.XXXXXX")
  trap 'rm -rf --one-file-system "$work"' EXIT
}
