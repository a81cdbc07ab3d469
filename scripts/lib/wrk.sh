# Finds wrk, the load generator, or gets it. Sourced after common.sh.
# shellcheck shell=bash

# Sets `wrk` to the one on the PATH, else to Debian's package, unpacked into .tools so that nothing is installed.
find_wrk() {
  if have wrk; then
    wrk=$(command -v wrk)
    return
  fi
  local place=$tools/wrk
  wrk=$place/bin/wrk
  [ ! -x "$wrk" ] || return 0
  have apt-get && have dpkg-deb ||
    die "wrk is needed to make load, and this system has no apt-get to get it with; install it by hand"
  say "getting Debian's package wrk into .tools/wrk"
  rm -rf "$place"
  mkdir -p "$place"
  # The lists of packages may be missing or old; only root can renew them.
  (cd "$place" && apt-get download -qq wrk libluajit-5.1-2) >&2 ||
    { [ "$(id -u)" = 0 ] && apt-get update -qq >&2 && (cd "$place" && apt-get download -qq wrk libluajit-5.1-2) >&2; } ||
    die "apt-get download wrk failed; its own words are above. Is the package registry reachable? Run: apt-get update"
  local package
  for package in "$place"/*.deb; do
    dpkg-deb -x "$package" "$place" || die "$package could not be unpacked"
  done
  rm -f "$place"/*.deb
  mkdir -p "$place/bin"
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$(dirname "$(find "$place/usr/lib" -name 'libluajit-5.1.so.2' | head -n 1)")" \
    "$place/usr/bin/wrk" >"$wrk"
  chmod +x "$wrk"
  "$wrk" -v 2>&1 | grep -q '^wrk ' || { rm -f "$wrk" && die "the package wrk brought no program that runs here"; }
}
