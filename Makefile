# Targets for people: `make demo` and `make test` are all a newcomer needs; each
# installs what it misses and says what it does. CONTRIBUTING.md explains the tiers.

SHELL      := /bin/bash -o pipefail
GO         ?= go
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TAGS       := containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper
GOFLAGS_   := -trimpath -tags '$(TAGS)'
LDFLAGS    := -s -w -X main.version=$(VERSION)
MAX_BINARY := 41943040
MAX_INITRAMFS := 6000000
MODULE     := github.com/kedge-os/kedge
CACHE      := $(or $(KEDGE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kedge)

export CGO_ENABLED := 0
export KEDGE_CACHE := $(CACHE)
# Programs that tests run read names as UTF-8 and say what they say in English,
# also where a machine has no locale or another.
export LC_ALL := C.UTF-8

# e2e boots machines, kills programs and fills disks; make check leaves it out.
FAST_PACKAGES = $(shell $(GO) list -tags '$(TAGS)' ./... | grep -v /e2e/)
E2E_PACKAGES  = $(shell $(GO) list -tags '$(TAGS)' ./... | grep /e2e/)
# The race detector needs cgo; the product never does. Tests that spend their
# time in other programs have nothing to show it, nor has package boot, which
# starts no goroutine.
RACE_PACKAGES = $(filter-out %/interop $(MODULE)/pkg/boot% $(if $(KEDGE_NIGHTLY),,$(RACE_NIGHTLY)),$(FAST_PACKAGES))
# Minutes under it, and what they start goroutines in has tests of its own.
RACE_NIGHTLY  = $(MODULE)/pkg/host $(MODULE)/pkg/builder
# Packages with tests that -short leaves out, and what make test has to run
# beyond the race detector's tests.
LONG_PACKAGES = $(addprefix $(MODULE)/,$(shell grep -rl 'testing.Short()' --include='*_test.go' api cmd hack internal pkg | xargs -n 1 dirname | sort -u))
REST_PACKAGES = $(filter-out $(filter-out $(LONG_PACKAGES),$(RACE_PACKAGES)),$(FAST_PACKAGES))

.PHONY: all build man deps images all-images check test nightly demo bench lint fmt unit race rest e2e long size clean help

all: build

help:
	@echo 'make build    bin/kedge, static'
	@echo 'make man      manual pages and shell completions, in bin/'
	@echo 'make check    build, lint, unit and oracle tests (under 5 minutes)'
	@echo 'make test     all of check, race detector and booted machines (what CI runs)'
	@echo 'make nightly  test on every file system, longer fuzzing and crash matrices'
	@echo 'make demo     install, boot, switch, roll back a real image (QUICK=1: without booting)'
	@echo 'make bench    import speed against podman, umoci and ostree'

build:
	@mkdir -p bin
	$(GO) build $(GOFLAGS_) -ldflags "$(LDFLAGS)" -o bin/ ./cmd/...

# Static, and small enough to be carried onto a host by itself; what goes into
# every initramfs is smaller still.
size: build
	@check() { s=$$(stat -c %s $$1); echo "$$1: $$s bytes"; [ $$s -le $$2 ] || { echo "that is more than $$2" >&2; exit 1; }; \
		! ldd $$1 >/dev/null 2>&1 || { echo "$$1 is not static" >&2; exit 1; }; }; \
	check bin/kedge $(MAX_BINARY); check bin/kedge-initramfs $(MAX_INITRAMFS)

deps:
	@hack/deps.sh

# Made in the first run, minutes long: not in the time that a test may take.
images: deps
	@hack/lab/images.sh

all-images: deps
	@hack/lab/images.sh all

# Manual pages and shell completions, for packages.
man: build
	@mkdir -p bin/man bin/completion
	bin/kedge man bin/man
	@for s in bash zsh fish; do bin/kedge completion $$s >bin/completion/kedge.$$s; done

lint:
	hack/lint.sh run --allow-parallel-runners --build-tags '$(shell echo $(TAGS) | tr " " ,)' ./...

fmt:
	hack/lint.sh fmt ./...

# Unit tests, seeds of the fuzz tests, and the tests that hold our bytes against
# the real ostree, matchpathcon, podman, skopeo and mkcomposefs.
unit: images
	@echo '== unit and oracle tests'
	@$(GO) test $(GOFLAGS_) -short -timeout 5m $(FAST_PACKAGES)

check: build size lint unit

race: images
	@echo '== unit and oracle tests under the race detector'
	@CGO_ENABLED=1 $(GO) test $(GOFLAGS_) -race -short -timeout 20m $(RACE_PACKAGES)

# What was not run under the race detector, and the tests that -short leaves out.
rest: all-images
	@echo '== unit and oracle tests, the long ones too'
	@$(GO) test $(GOFLAGS_) -timeout 20m $(REST_PACKAGES)

# Two packages at a time: while machines want the processors, others wait for
# the disk. What is tested is what was built, of which the cache of results does
# not know.
e2e long nightly: export KEDGE_BINARY := $(CURDIR)/bin/kedge
e2e: all-images build
	@echo '== end to end: hostile input, crashes, machines that boot (15 minutes)'
	@$(GO) test $(GOFLAGS_) -count 1 -timeout 60m -p 2 $(E2E_PACKAGES)

# rest and e2e at once: machines want processors, package managers wait for the
# disk. The longest come first, so that none of them is alone at the end.
LONGEST = $(addprefix $(MODULE)/,e2e/boot pkg/host pkg/layering)
long: all-images build
	@echo '== end to end, unit and oracle tests, the long ones too (25 minutes)'
	@$(GO) test $(GOFLAGS_) -count 1 -timeout 60m -p 3 $(LONGEST) $(filter-out $(LONGEST),$(E2E_PACKAGES) $(REST_PACKAGES))

test: build size lint race long

nightly: export KEDGE_NIGHTLY := 1
nightly: build size lint race all-images
	$(GO) test $(GOFLAGS_) -count 1 -timeout 1h $(FAST_PACKAGES)
	$(GO) test $(GOFLAGS_) -count 1 -timeout 4h -p 2 $(E2E_PACKAGES)
	hack/fuzz.sh 5m

demo: deps build
	$(GO) run $(GOFLAGS_) ./hack/demo $(if $(QUICK),-quick)

bench: deps build
	hack/bench/run.sh

clean:
	rm -rf bin
