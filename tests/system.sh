#!/bin/sh
# What the tests need of the system and cannot have from a Python package: Chromium, for the tests of web pages,
# iproute2, for hosts that are cut off from the network, and gcc, for NVIDIA cards that are not there (PostgreSQL comes
# with the 'test' extra). Never fails: what is missing is left out, and said.
set -u

say() { echo "tests: $*"; }

find_chromium() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        # Some systems have a stub of that name that only asks for a snap: it must really run.
        "$name" --version >/dev/null 2>&1 && command -v "$name" && return 0
    done
    return 1
}

may_install() {
    [ "$(id -u)" = 0 ] && [ -r /etc/os-release ] && command -v apt-get >/dev/null || return 1
    # In a subshell, because the file sets variables of its own.
    (. /etc/os-release && case ${ID:-} in debian | ubuntu) true ;; *) false ;; esac)
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y \
        -o Acquire::Retries=0 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o DPkg::Lock::Timeout=60 "$@"
}

install() {
    log=$(mktemp) || return 1
    installed=1
    if apt install --no-install-recommends "$1" >"$log" 2>&1; then
        installed=0
    elif apt update >>"$log" 2>&1 && apt install --no-install-recommends "$1" >>"$log" 2>&1; then
        installed=0
    else
        tail -n 3 "$log" >&2
    fi
    rm -f "$log"
    return $installed
}

if found=$(find_chromium); then
    say "Chromium: $found"
elif ! may_install; then
    say "Chromium is not here: tests of web pages are left out (it is installed only as root on Debian and Ubuntu;" \
        "install a package that has 'chromium' on the PATH to have them)"
elif say "Chromium is not here: installing the package 'chromium'" && install chromium; then
    say "Chromium: $(find_chromium)"
else
    say "Chromium could not be installed (see above): tests of web pages are left out"
fi

if command -v ip >/dev/null; then
    say "ip: $(command -v ip)"
elif ! may_install; then
    say "ip is not here: tests of hosts that are cut off are left out (they need root and the package iproute2)"
elif say "ip is not here: installing the package 'iproute2'" && install iproute2; then
    say "ip: $(command -v ip)"
else
    say "iproute2 could not be installed (see above): tests of hosts that are cut off are left out"
fi

compiles() { echo '#include <stdio.h>' | gcc -x c -c -o /dev/null - 2>/dev/null; }
if compiles; then
    say "gcc: $(command -v gcc)"
elif ! may_install; then
    say "gcc is not here: tests with NVIDIA cards that are not there are left out (they need gcc and the C headers)"
elif say "gcc is not here: installing the packages 'gcc' and 'libc6-dev'" && install gcc && install libc6-dev && compiles; then
    say "gcc: $(command -v gcc)"
else
    say "gcc could not be installed (see above): tests with NVIDIA cards that are not there are left out"
fi
exit 0
