#!/usr/bin/env bash
# Measures bin/kedge on the lab's images and prints the table of
# docs/performance.md, row by row. Arguments go to the program: -runs N, -only
# TEXT.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tags='containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper'
layout=$(hack/lab/base-image.sh)
chunked=
if command -v cargo >/dev/null; then
  chunked=$(hack/lab/chunked/large.sh)
else
  echo 'bench: cargo is not installed, so the ostree-chunked image is left out' >&2
fi
program=$(mktemp)
trap 'rm -f "$program"' EXIT
CGO_ENABLED=0 go build -tags "$tags" -o "$program" ./hack/bench
# The scratch directory is beside the cache: not a tmpfs.
hack/lab/mkcomposefs.sh --root >/dev/null # unpacked before it is measured
"$program" -layout "$layout" -chunked "$chunked" -mkcomposefs hack/lab/mkcomposefs.sh -work "$(dirname "$layout")/.." "$@"
