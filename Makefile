# make build      the static binary bin/sbx
# make demo       set up, build, run the built-in image, fetch its page
# make test       every test; as root they run as an ordinary user
# make install    PREFIX=/usr/local: the binary, manual pages, completion
# See CONTRIBUTING.md for the rest.

GO       ?= scripts/go
GOFMT     = "$$($(GO) env GOROOT)/bin/gofmt"
PREFIX   ?= /usr/local
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || cat VERSION 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
# urfave/cli's manual pages need a Markdown parser, which every process would
# initialise at its start, about 0.3 ms; nothing here uses them.
TAGS     := urfave_cli_no_docs
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.8.0

export GOFLAGS := -buildvcs=false

.PHONY: build man setup demo test test-packages test-fuzz fuzz test-e2e test-security test-world soak test-vm test-race bench bench-quick bench-setup bench-micro lint vuln release test-release test-binary fmt install uninstall clean

BIN ?= bin/sbx
build:
	CGO_ENABLED=0 $(GO) build -tags $(TAGS) -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/sbx

# The manual pages, by go-md2man, which is no part of the binary.
MAN_DATE ?= $(shell git log -1 --format=%cs 2>/dev/null || date +%F)
man: build
	@rm -rf bin/man && mkdir -p bin/man
	@bin/sbx __manual bin/man $(MAN_DATE)
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/go-md2man github.com/cpuguy83/go-md2man/v2
	@for f in bin/man/*.md; do bin/go-md2man -in $$f -out $${f%.md} && rm $$f || exit 1; done

setup:
	@scripts/setup.sh $(SETUP)

demo: setup build
	@scripts/demo.sh

test: SETUP = uml
test: setup build
	@scripts/test.sh all

test-packages: setup
	@scripts/test.sh packages

# Each fuzzer for a moment, as make test does; make fuzz takes its time.
test-fuzz: setup
	@scripts/test.sh fuzz

fuzz: export SBX_FUZZ_TIME ?= 2m
fuzz: test-fuzz

test-e2e: setup build
	@scripts/test.sh e2e

# Sandboxes that come, go, connect and talk, for SBX_SOAK.
soak: export SBX_SOAK ?= 30m
soak: setup build
	@scripts/test.sh soak

# The catalogue of attempts to get out of a sandbox; make test runs it too.
test-security: setup build
	@scripts/test.sh security

test-world: setup build
	@scripts/test.sh world

# On a stock Debian in a virtual machine: VM=uml or VM=qemu.
VM ?= uml
test-vm: SETUP = $(VM)
test-vm: setup build
	@VM=$(VM) scripts/vm.sh test

# The race detector needs cgo and a C compiler (apt-get install gcc libc6-dev), and a static
# program, as in a sandbox's root there is no C library.
RACE := $(GOFLAGS) -race -trimpath -tags=netgo,osusergo,$(TAGS) '-ldflags=-linkmode external -extldflags -static -X main.version=$(VERSION)'
test-race: setup bin/sbx-race
	GOFLAGS="$(RACE)" CGO_ENABLED=1 scripts/test.sh packages
	SBX_BIN=$(CURDIR)/bin/sbx-race scripts/test.sh e2e

bin/sbx-race: FORCE
	@command -v $${CC:-gcc} >/dev/null || { echo "the race detector needs a C compiler: apt-get install gcc libc6-dev" >&2; exit 1; }
	GOFLAGS="$(RACE)" CGO_ENABLED=1 $(GO) build -o $@ ./cmd/sbx

# sbx beside its peers, in about an hour; writes docs/performance.md.
bench: bench-setup
	bin/bench --json bin/bench.json --report docs/performance.md $(BENCH_FLAGS)

# The scenarios that decide, in about ten minutes; writes nothing.
bench-quick: bench-setup
	bin/bench --quick $(BENCH_FLAGS)

# A peer that cannot be fetched is named in the results.
bench-setup:
	@[ "$$(id -u)" = 0 ] || { echo "make bench needs root, for veth pairs: sudo make bench" >&2; exit 1; }
	@$(MAKE) setup build bin/bench
	-scripts/peers.sh

bin/bench: FORCE
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./bench

FORCE:

# The Go benchmarks of the packages.
bench-micro: build
	CGO_ENABLED=0 $(GO) test -run '^$$' -bench . -benchmem -exec scripts/as-user $$($(GO) list ./... | grep -v /e2e)

# Formatting, go vet for both machines, staticcheck; make test has it too. With the flags
# of the tests, whose compiled packages the last ones then find.
lint: export GOFLAGS += -trimpath
lint: export CGO_ENABLED := 0
lint:
	@bad=$$($(GOFMT) -l .) && test -z "$$bad" || { $(GOFMT) -d $$bad; exit 1; }
	GOARCH=arm64 $(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) vet ./...

# Known holes in what is linked. VULNDB is another database, as file:///dir.
vuln:
	@scripts/vuln.sh $(GOVULNCHECK) $(TAGS) $(VULNDB)

# dist/: archives, lists of parts, checksums; see docs/release.md. test-release makes it
# twice, in two places, and compares.
release:
	@scripts/release.sh $(VERSION)

test-release:
	@scripts/release.sh check $(VERSION)

# The short one, which make test has.
test-binary:
	@scripts/release.sh binary

fmt:
	$(GOFMT) -w .

install: build man
	install -D -m 755 bin/sbx $(DESTDIR)$(PREFIX)/bin/sbx
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 bin/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	bin/sbx completion bash | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/bash-completion/completions/sbx
	bin/sbx completion zsh | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_sbx
	bin/sbx completion fish | install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/sbx.fish

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/sbx $(DESTDIR)$(PREFIX)/share/man/man1/sbx.1 $(DESTDIR)$(PREFIX)/share/man/man1/sbx-*.1 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/sbx $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_sbx \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/sbx.fish

clean:
	rm -rf bin dist
