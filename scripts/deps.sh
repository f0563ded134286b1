#!/bin/bash
# Installs the Debian packages that building and testing need; silent and offline when all are there.
set -euo pipefail

required=(gcc g++ libc6-dev make pkg-config libsqlite3-dev libopenblas-dev liblapacke-dev
    libcriterion-dev libjansson-dev libpcre2-dev libxxhash-dev)
# Lint, and the tests of the NEON code, which skip with a message where these are absent.
optional=(git clang clang-format libomp-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)

# Prints those of the named packages that are not installed.
missing() {
    local installed name
    installed=" $(dpkg-query -W -f '${db:Status-Status}:${Package} ' "$@" 2>/dev/null || true)"
    for name in "$@"; do
        [[ $installed == *" installed:$name "* ]] || printf '%s ' "$name"
    done
}

if ! command -v dpkg-query >/dev/null; then
    if command -v gcc g++ pkg-config >/dev/null &&
        pkg-config --exists sqlite3 openblas lapacke jansson libpcre2-8 libxxhash criterion; then
        exit 0
    fi
    echo "deps: not a Debian system; install what these packages hold: ${required[*]}" >&2
    exit 1
fi

need=$(missing "${required[@]}")
want=$(missing "${optional[@]}")
[[ -z $need$want ]] && exit 0

as_root=()
if ((EUID != 0)); then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root=(sudo -n)
    else
        echo "deps: packages are missing; run" >&2
        echo "  sudo apt-get install -y --no-install-recommends $need$want" >&2
        [[ -z $need ]] # without the optional ones, the build goes on
        exit
    fi
fi

echo "deps: installing $need$want" >&2
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
"${apt[@]}" update >&2 </dev/null || echo "deps: the package lists could not be refreshed" >&2
# shellcheck disable=SC2086 # the lists are words on purpose
if [[ -n $need ]]; then
    "${apt[@]}" install --no-install-recommends $need >&2 </dev/null
fi
# shellcheck disable=SC2086
if [[ -n $want ]] && ! "${apt[@]}" install --no-install-recommends $want >&2 </dev/null; then
    echo "deps: going on without $want(lint needs clang; NEON tests skip)" >&2
fi
