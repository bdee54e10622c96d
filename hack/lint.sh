#!/usr/bin/env bash
# Runs golangci-lint at the version that .golangci.yml is written for, built
# once from source into the cache (some minutes; the module proxy is all it needs).
set -euo pipefail
version=v2.15.0
cache=${KEDGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kedge}
bin=$cache/golangci-lint-$version-$(go env GOVERSION)
if [ ! -x "$bin/golangci-lint" ]; then
  echo "lint: building golangci-lint $version once (some minutes)" >&2
  mkdir -p "$bin"
  GOBIN=$bin GOFLAGS=-trimpath CGO_ENABLED=0 go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version"
fi
exec "$bin/golangci-lint" "$@"
