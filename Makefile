# make demo and make test install what they need (Debian packages, as root).
# Everything else works from a plain Go toolchain.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := build

VERSION       ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOLANGCI_LINT := bin/tools/golangci-lint-2.15.0
SUDO          := $(shell [ $$(id -u) = 0 ] || echo sudo)
GO_BUILD      := go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'
# The packages with tests that need root and a kernel: all of those are named TestRoot....
ROOT_PACKAGES  = $(shell grep -rl --include='*_test.go' '^func TestRoot[A-Z]' . | xargs -r dirname | sort -u)

# Static everywhere: what is tested is what is shipped.
export CGO_ENABLED     := 0
# The Docker command line that scripts/install-deps unpacks.
export NETD_DOCKER_OLD := $(CURDIR)/bin/tools/docker

.PHONY: build demo test test-unit test-root test-vm lint bench install-deps help

build: ## the static binary, bin/netd
	$(GO_BUILD) -o bin/netd ./netd

demo: build ## build, then three nodes on this machine and every check of the main job
	$(SUDO) scripts/install-deps demo
	$(SUDO) bin/netd demo

test: ## everything that CI runs, with every package it needs installed first
	@$(SUDO) scripts/install-deps
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory test-unit
	$(MAKE) --no-print-directory test-root
	$(MAKE) --no-print-directory test-vm

test-unit: ## all that needs neither root nor a particular kernel
	go test -count=1 -timeout 5m -skip '^TestRoot[A-Z]' ./...

test-root: build ## this machine's own kernel: the root tests, in namespaces that they make, and the demo
	$(SUDO) scripts/install-deps root
	$(SUDO) env PATH="$$PATH" CGO_ENABLED=0 go test -count=1 -timeout 10m -p 1 -run '^TestRoot[A-Z]' $(ROOT_PACKAGES)
	$(SUDO) bin/netd demo

test-vm: build ## the same and the demo in Debian's kernel with ip_vs, where nothing may be skipped
	$(SUDO) scripts/install-deps vm
	$(SUDO) env PATH="$$PATH" CGO_ENABLED=0 scripts/test-vm $(ROOT_PACKAGES)

lint: build $(GOLANGCI_LINT) ## formatting, go vet, golangci-lint, the Vagrantfile
	@unformatted=$$(gofmt -l .)
	if [[ -n $$unformatted ]]; then echo "not gofmt'ed: $$unformatted"; exit 1; fi
	go vet ./...
	$(GOLANGCI_LINT) run ./...
	if command -v vagrant >/dev/null; then
		cd vagrant && VAGRANT_HOME=$$(mktemp -d) vagrant validate --ignore-provider
	else
		echo 'lint: no vagrant on this machine, the Vagrantfile is not checked (scripts/install-deps vagrant)'
	fi

bench: build ## ratios to the direct path between two hosts; run it with nothing else running
	$(SUDO) scripts/install-deps root docker bench
	$(SUDO) env PATH="$$PATH" CGO_ENABLED=0 scripts/bench

install-deps: ## every Debian package that the tests need
	@$(SUDO) scripts/install-deps

$(GOLANGCI_LINT):
	GOBIN=$(CURDIR)/bin/tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	mv bin/tools/golangci-lint $@

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14
