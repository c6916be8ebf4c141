# Deputy. `make` or `make help` lists what there is.
SHELL := /bin/bash
export CGO_ENABLED := 1
GO ?= go
# Tools and servers for tests are cached here, outside the tree.
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/deputy
export DEPUTY_CACHE := $(CACHE)
SOURCES := $(shell find . -name '*.go' -not -path './.cache/*') go.mod go.sum

.DEFAULT_GOAL := help
.PHONY: help build demo dev test bench soak check lint fmt vectors proto crossbuild clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: bin/deputy ## Build bin/deputy (installs gcc and libc6-dev by apt where missing)

bin/deputy: $(SOURCES)
	@scripts/setup build
	$(GO) build -o bin/deputy ./cmd/deputy
	@if [ -d examples/team ]; then $(GO) build -o bin/team ./examples/team; fi

demo: ## See the main job done on a real PostgreSQL (about a minute after the build)
	@scripts/setup demo
	@$(MAKE) --no-print-directory bin/deputy
	@scripts/demo

dev: ## Run all roles in one process in front of a sample PostgreSQL, for trying things by hand
	@scripts/setup demo
	@$(MAKE) --no-print-directory bin/deputy
	@scripts/dev

test: ## Run every test, with the race detector, against real servers and clients
	@scripts/setup test
	$(GO) test -race -timeout 40m $(TESTFLAGS) ./...

bench: ## Measure, beside PgBouncer, HAProxy, nginx, ssh -J, kubectl and bare handlers: BENCH=regexp SECONDS=n ROUNDS=n PROFILE=dir (docs/performance.md)
	@scripts/setup bench
	$(GO) test -tags bench -c -o bin/bench ./integration/load
	@BENCH='$(BENCH)' SECONDS='$(SECONDS)' ROUNDS='$(ROUNDS)' PROFILE='$(PROFILE)' RESULTS=bench/results.json bin/bench -test.run '^TestBench$$' -test.timeout 0

soak: ## Kill roles under load and hold every promise: ROUNDS=10000, SECONDS= at most, SEED= to do it again
	@scripts/setup test
	@scripts/soak "$(or $(ROUNDS),10000)" "$(or $(SECONDS),0)" "$(or $(SEED),0)"

check: lint crossbuild ## Formatting, vet, linters, import directions, the build without cgo
	@scripts/setup build
	$(GO) vet ./...
	$(GO) vet -tags bench ./integration/load
	$(GO) test -count=1 ./internal/layout

lint: ## Run golangci-lint as .golangci.yml says
	@scripts/setup build
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt these files:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	@mkdir -p $(CACHE)/bin
	cd tools && $(GO) build -o $(CACHE)/bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	$(CACHE)/bin/golangci-lint run ./...

crossbuild: ## Build the parts that must build without cgo
	CGO_ENABLED=0 GOOS=darwin $(GO) build ./actor ./audit ./client
	CGO_ENABLED=0 GOOS=darwin $(GO) build -o /dev/null ./cmd/deputy

fmt: ## Format the Go code
	gofmt -w $$(git ls-files '*.go')

vectors: ## Write the test vectors of actor/ and audit/ again
	$(GO) test ./actor -run TestVectors -update
	$(GO) test ./audit -run TestLogVectorsAreUpToDate -update

proto: ## Generate Go code from proto/ (needs protoc: Debian's protobuf-compiler and libprotobuf-dev)
	@mkdir -p $(CACHE)/bin
	cd tools && $(GO) build -o $(CACHE)/bin/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	PATH="$(CACHE)/bin:$$PATH" proto/generate.sh

clean: ## Remove what was built in the tree
	rm -rf bin
