# Targets for people: `make demo` and `make test` are all a newcomer needs; each
# installs what it misses and says what it does. CONTRIBUTING.md explains the tiers.

SHELL      := /bin/bash -o pipefail
GO         ?= go
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TAGS       := containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper
GOFLAGS_   := -trimpath -tags '$(TAGS)'
LDFLAGS    := -s -w -X main.version=$(VERSION)
MAX_BINARY := 41943040
CACHE      := $(or $(KEDGE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kedge)

export CGO_ENABLED := 0
export KEDGE_CACHE := $(CACHE)

# Packages whose tests boot machines or run long; make check leaves them out.
SLOW := /e2e(/|$$)
FAST_PACKAGES = $(shell $(GO) list -tags '$(TAGS)' ./... | grep -vE '$(SLOW)')

.PHONY: all build deps check test nightly demo bench lint fmt unit race fuzz-seeds e2e size clean help

all: build

help:
	@echo 'make build    bin/kedge, static'
	@echo 'make check    build, lint, unit and oracle tests (under 5 minutes)'
	@echo 'make test     all of check, race detector and booted machines (what CI runs)'
	@echo 'make nightly  test on every file system, longer fuzzing and crash matrices'
	@echo 'make demo     install, boot, switch, roll back a real image (QUICK=1: without booting)'
	@echo 'make bench    import speed against podman, umoci and ostree'

build:
	@mkdir -p bin
	$(GO) build $(GOFLAGS_) -ldflags "$(LDFLAGS)" -o bin/ ./cmd/...

# Static, and small enough to be carried onto a host by itself.
size: build
	@s=$$(stat -c %s bin/kedge); echo "bin/kedge: $$s bytes"; [ $$s -le $(MAX_BINARY) ]
	@! ldd bin/kedge >/dev/null 2>&1 || { echo 'bin/kedge is not static' >&2; exit 1; }

deps:
	@hack/deps.sh

lint:
	hack/lint.sh run --build-tags '$(shell echo $(TAGS) | tr " " ,)' ./...

fmt:
	hack/lint.sh fmt ./...

# Unit tests, seeds of the fuzz tests, and the tests that hold our bytes against
# the real ostree, matchpathcon, podman, skopeo and mkcomposefs.
unit: deps
	$(GO) test $(GOFLAGS_) -short -timeout 5m $(FAST_PACKAGES)

check: build size lint unit

# The race detector needs cgo; the product never does.
race: deps
	CGO_ENABLED=1 $(GO) test $(GOFLAGS_) -race -short -timeout 15m $(FAST_PACKAGES)

e2e: deps build
	$(GO) test $(GOFLAGS_) -v -timeout 40m -p 1 ./e2e/...

test: build size lint deps
	$(GO) vet $(GOFLAGS_) ./...
	CGO_ENABLED=1 $(GO) test $(GOFLAGS_) -race -short -timeout 15m $(FAST_PACKAGES)
	$(GO) test $(GOFLAGS_) -timeout 40m -p 1 ./...

nightly: test
	KEDGE_NIGHTLY=1 $(GO) test $(GOFLAGS_) -v -timeout 4h -p 1 -count 1 ./...
	hack/fuzz.sh 5m

demo: deps build
	$(GO) run $(GOFLAGS_) ./hack/demo $(if $(QUICK),-quick)

bench: deps build
	hack/bench/run.sh

clean:
	rm -rf bin
