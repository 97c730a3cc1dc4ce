#!/usr/bin/env bash
# `make test`: everything CI runs, in one order, with the time of each step. A failed step does not stop the later ones, so that
# one run tells all that is wrong; the exit code is 1 if any failed. A client suite that cannot run is a failure, never a skip.
#   test.sh [NAME...]   only the steps whose name begins with one of NAME (for instance: test.sh clients)
set -uo pipefail
cd "$(dirname "$0")/.."
only=("$@")
target=${CARGO_TARGET_DIR:-target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
export CARGO_TARGET_DIR=$target UPDRAFT_BIN=${UPDRAFT_BIN:-$target/debug/updraft} UPDRAFT_CLIENTS_DIR=$target/clients
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never} RUST_BACKTRACE=${RUST_BACKTRACE:-1}
failed=() summary=()
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

step() {
  local name=$1 begin=$SECONDS verdict=ok wanted=$([ ${#only[@]} -eq 0 ] && echo yes)
  shift
  for prefix in "${only[@]}"; do case $name in "$prefix"*) wanted=yes ;; esac; done
  [ "$wanted" ] || return 0
  printf '\n==> %s: %s\n' "$name" "$*"
  "$@" 2>&1 | tee "$logs/$name"
  [ "${PIPESTATUS[0]}" -eq 0 ] || { verdict=FAILED; failed+=("$name"); }
  summary+=("$(printf '%-22s %-7s %5ds' "$name" "$verdict" $((SECONDS - begin)))")
  echo "<== $name: $verdict after $((SECONDS - begin)) s"
}

# Each fuzz target runs for UPDRAFT_FUZZ_SECONDS; here they share a minute, or what the caller gives.
rust_tests() {
  local targets
  targets=$(grep -rhE 'arbtest\(\|' --include='*.rs' crates integration-tests | wc -l)
  UPDRAFT_FUZZ_SECONDS=$((${UPDRAFT_FUZZ_SECONDS:-60} / (targets > 0 ? targets : 1))) cargo test -q --workspace --no-fail-fast
}
clients() { .venv/bin/python integration-tests/python/suites.py "$@"; }
# The stock command line client of the arrow-flight version that Updraft itself is built with.
flight_cli() {
  local version
  version=$(sed -n '/^name = "arrow-flight"$/{n;s/version = "\(.*\)"/\1/p;q}' Cargo.lock)
  grep -qsF "\"arrow-flight $version " "$target/flight-cli/.crates.toml" ||
    cargo install -q --debug --locked --root "$target/flight-cli" --features cli,flight-sql,tls-ring --version "=$version" arrow-flight
}

integration-tests/setup.sh test || exit 1
step lint-typos .venv/bin/typos
step lint-format cargo fmt --all --check
step lint-clippy cargo clippy -q --workspace --all-targets -- -D warnings
step build cargo build -q --workspace --all-targets
step rust-tests rust_tests
# Of the workspace, so that nothing is built anew with other features.
step rust-tests-tight cargo test -q --workspace --test tight -- --ignored
step clients-cli-build flight_cli
step clients-python clients python
step clients-jdbc clients jdbc
step clients-go clients go
step clients-rust clients rust
step clients-matrix clients matrix --check
step torture-judge .venv/bin/python -m pytest -q integration-tests/torture
step torture integration-tests/torture/run.py slice
step torture-report integration-tests/torture/run.py render --check
step bench-judge .venv/bin/python -m pytest -q integration-tests/bench
step bench integration-tests/bench/run.py smoke
step bench-report integration-tests/bench/run.py render --check

printf '\n'
printf '%s\n' "${summary[@]}" "total $((SECONDS / 60)) min $((SECONDS % 60)) s"
if [ ${#failed[@]} -gt 0 ]; then
  # Once more at the end, because the end is what is kept of a long log.
  for name in "${failed[@]}"; do printf '\n%s ended with:\n' "$name" && tail -n 12 "$logs/$name" | cut -c 1-300; done
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all passed"
