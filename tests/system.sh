#!/bin/sh
# What the tests need of the system and cannot have from a Python package: Chromium, for the tests of web pages;
# iproute2, for hosts that are cut off from the network; Docker, for engines in containers; gcc, for small programs that
# stand in for engines and drivers (PostgreSQL comes with the 'test' extra). Never fails: what is missing is left out,
# and said.
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
    # RUNLEVEL: no service is started just because its package was installed.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -q -y \
        -o Acquire::Retries=0 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o DPkg::Lock::Timeout=60 "$@"
}

install() {
    log=$(mktemp) || return 1
    installed=1
    if apt install --no-install-recommends "$@" >"$log" 2>&1; then
        installed=0
    elif apt update >>"$log" 2>&1 && apt install --no-install-recommends "$@" >>"$log" 2>&1; then
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

# Compiled programs are linked statically, so that they run in empty images.
if command -v gcc >/dev/null && echo 'int main(void) { return 0; }' | gcc -static -x c -o /dev/null - 2>/dev/null; then
    say "gcc: $(command -v gcc)"
elif ! may_install; then
    say "gcc is not here: tests that compile something are left out (they need gcc and the C library to link statically)"
elif say "gcc is not here: installing the packages 'gcc' and 'libc6-dev'" && install gcc libc6-dev; then
    say "gcc: $(command -v gcc)"
else
    say "gcc could not be installed (see above): tests that compile something are left out"
fi

# An engine that runs already is left alone: as root the tests start one of their own (tests/docker_fixtures.py).
if command -v dockerd >/dev/null && command -v containerd >/dev/null; then
    say "Docker: $(command -v dockerd)"
elif [ "$(id -u)" != 0 ] && docker version >/dev/null 2>&1; then
    say "Docker: the engine that runs here"
elif ! may_install; then
    say "Docker is not here: tests of containers are left out (they need a Docker engine that runs, or root and dockerd)"
elif say "Docker is not here: installing the package 'docker.io'" && install docker.io; then
    say "Docker: $(command -v dockerd)"
else
    say "Docker could not be installed (see above): tests of containers are left out"
fi
exit 0
