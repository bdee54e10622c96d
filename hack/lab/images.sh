#!/usr/bin/env bash
# Makes what tests take from the cache, aloud, and before any test's time runs:
#
#   hack/lab/images.sh        what make check needs
#   hack/lab/images.sh all    what machines and package managers need too
#
# Minutes once, a second or two afterwards. Without root, or the packages of
# hack/deps.sh (KEDGE_NO_DEPS=1), it makes nothing: tests skip what they lack.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

if [ "$(id -u)" != 0 ] || [ "${KEDGE_NO_DEPS:-}" = 1 ]; then
  exit 0
fi
recipes=("base-image.sh" "mkcomposefs.sh --root")
# Debian 12's cargo is too old for these crates.
if command -v cargo >/dev/null; then
  recipes+=("chunked/large.sh" "chunked/build-cli.sh" "cfsctl.sh --path")
fi
if [ "${1:-}" = all ]; then
  recipes+=("base-image.sh machine" "composefs-image.sh" "composefs-backend-image.sh" "packages.sh" "grub.sh")
  [ -z "${KEDGE_NIGHTLY:-}" ] || recipes+=("packages-image.sh")
fi
for r in "${recipes[@]}"; do
  began=$SECONDS
  # shellcheck disable=SC2086 # a program and its argument
  "$lab_dir"/$r >/dev/null
  if [ $((SECONDS - began)) -gt 10 ]; then
    say "$r took $((SECONDS - began)) s; it is in the cache from here on"
  fi
done
