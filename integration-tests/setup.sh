#!/usr/bin/env bash
# Gives a Debian machine what building, running and testing Updraft needs. Safe to repeat; does nothing when all is there.
#   setup.sh run    what `make run` needs: C compiler, protoc, the Python packages
#   setup.sh test   the same, and what the client suites need (Java, Maven, Go)
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-test}

# Toolchains are the reader's choice of version and place, so they are asked for, not installed.
missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("  $1: $2"); }
need cargo "install Rust 1.94 or newer (https://rustup.rs)"
need python3 "install Python 3.11 or newer (apt-get install python3 python3-venv)"
if [ "$what" = test ]; then
  need java "install a JDK, 17 or newer (apt-get install openjdk-17-jdk-headless)"
  need mvn "install Maven 3.8 or newer (apt-get install maven)"
  need go "install Go 1.25 or newer (https://go.dev/dl)"
fi
if [ ${#missing[@]} -gt 0 ]; then
  { echo "setup: these programs are needed and were not found:"; printf '%s\n' "${missing[@]}"; } >&2
  exit 1
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: Python 3.11 or newer is needed, found $(python3 --version)" >&2; exit 1; }

# System packages.
packages=()
# protoc alone does not do: DataFusion's plans import the types that come with it, which Debian has in a package of their own.
protoc --descriptor_set_out=/dev/null google/protobuf/any.proto >/dev/null 2>&1 || packages+=(protobuf-compiler libprotobuf-dev)
command -v cc >/dev/null 2>&1 || packages+=(build-essential)
python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
if [ ${#packages[@]} -gt 0 ]; then
  sudo=()
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  command -v apt-get >/dev/null 2>&1 || { echo "setup: install these packages by hand, this machine has no apt-get: ${packages[*]}" >&2; exit 1; }
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

# Python packages, in .venv. The stamp holds the requirements, so that a changed pin is installed.
requirements=integration-tests/python/requirements.txt
stamp=.venv/.requirements
if ! { cmp -s "$requirements" "$stamp" && .venv/bin/python -c '' 2>/dev/null; }; then
  [ -x .venv/bin/pip ] || python3 -m venv --clear .venv
  .venv/bin/pip install -q --disable-pip-version-check -r "$requirements"
  cp "$requirements" "$stamp"
fi

if [ "$what" = test ]; then
  # Maven fetches at its first run; Go is quick and says clearly when a module is out of reach.
  (cd integration-tests/go && go mod download)
fi
