# What you can do here. `make` alone lists it.
.DEFAULT_GOAL := help
.PHONY: help run test lint fmt clients slt torture bench criterion peers docs setup build dist clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## build, make sample data, serve it, say how to query it (PROFILE=dev builds quicker, SCALE=1, LISTEN=127.0.0.1:50051)
	@integration-tests/run.sh

test: ## everything CI runs: lints, Rust tests, a minute of fuzzing, every client
	@integration-tests/test.sh

lint: ## formatting, clippy, spelling, and dependencies when cargo-deny is installed
	@integration-tests/test.sh lint
	@if command -v cargo-deny >/dev/null 2>&1; then cargo deny check; else echo "cargo-deny is not installed; dependencies not checked (cargo install cargo-deny)"; fi

fmt: ## format all code
	cargo fmt --all

clients: ## run the client suites and write docs/clients.md from their results
	@integration-tests/test.sh build
	@integration-tests/test.sh clients-cli clients-python clients-jdbc clients-go clients-rust; status=$$?; \
	  .venv/bin/python integration-tests/python/suites.py matrix && exit $$status

slt: ## run the .slt files, in process and over a socket
	cargo test -p integration-tests --test slt

torture: ## try to break the memory budget and measure it, half an hour with 500 random statements (needs `make build`; ARGS="random --seed 7" runs one experiment)
	integration-tests/torture/run.py $(or $(ARGS),all)

bench: ## measure against DuckDB, DataFusion and other servers, 50 minutes (needs `make peers` for some of these, and `make build`; ARGS="eight --rows 1e6" runs one experiment)
	integration-tests/bench/run.py $(or $(ARGS),all)

criterion: ## time the hot paths alone, 3 minutes once built (ARGS="--save-baseline before", then ARGS="--baseline before" compares)
	cargo bench -p updraft-hot -p updraft-engine -p updraft-flight --bench lookup --bench scan --bench statements --bench encode -- $(ARGS)

peers: ## build the servers in Rust that `make bench` measures against, and its load generator (quick after `make build`)
	cargo build --release --locked --manifest-path integration-tests/peers/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)

docs: ## write config/default.toml and config/reference.md from the types, and the API documentation
	UPDATE_EXPECT=1 cargo test -q -p updraft-server config
	cargo doc --workspace --no-deps

setup: ## install what building and testing needs (Debian; repeats cheaply)
	@integration-tests/setup.sh test

build: ## build the release binary
	cargo build --release -p updraft-server

dist: ## build the binary as it is shipped, in deploy/Dockerfile: slower to build than `make build`, and quicker
	cargo build --profile dist -p updraft-server

clean: ## remove build output, sample data and the Python environment
	cargo clean
	rm -rf .venv .work integration-tests/jdbc/target
