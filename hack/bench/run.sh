#!/usr/bin/env bash
# Measures bin/kedge on the lab's images and prints the table of
# docs/performance.md, row by row. Arguments go to the program: -runs N, -only
# TEXT, -update docs/performance.md.
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
packages=$(hack/lab/packages.sh)
hack/lab/mkcomposefs.sh --root >/dev/null # unpacked before it is measured
# Not a tmpfs: layouts are in the cache directory.
cache=$(cd "$layout/../.." && pwd)
CGO_ENABLED=0 go build -tags "$tags" -o bin/bench ./hack/bench
# In place of the shell, so that a signal reaches what cleans up.
exec bin/bench -layout "$layout" -chunked "$chunked" -packages "$packages" -mkcomposefs hack/lab/mkcomposefs.sh -cache "$cache" -kedge bin/kedge "$@"
