# Sourced by the lab's scripts: where made things are kept, and under which key.
# shellcheck shell=bash
lab_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kedge_cache=${KEDGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kedge}

# recipe_key FILE…: the first 12 hex digits of a hash over the files that make
# something, so that a changed recipe makes a new one beside the old.
recipe_key() {
  cat -- "$@" | sha256sum | cut -c1-12
}

say() { echo "lab: $*" >&2; }
