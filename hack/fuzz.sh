#!/usr/bin/env bash
# Runs every fuzz test for a while: hack/fuzz.sh [TIME], 20s each by default.
set -euo pipefail
time=${1:-20s}
tags='containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper'
for dir in $(git grep -lE '^func Fuzz' -- '*_test.go' | xargs -r -n1 dirname | sort -u); do
  for f in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | cut -d' ' -f2 | sort -u); do
    echo "== $dir $f"
    go test -tags "$tags" -run '^$' -fuzz "^$f\$" -fuzztime "$time" "./$dir"
  done
done
