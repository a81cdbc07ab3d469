# Finds wrk, the load generator, or gets it. Sourced after common.sh.
# shellcheck shell=bash

# Sets `wrk` to the one on the PATH, else to Debian's package, unpacked into .tools so that nothing is installed.
find_wrk() {
  if have wrk; then
    wrk=$(command -v wrk)
    return
  fi
  local place=$tools/wrk
  wrk=$place/run
  ! { "$wrk" -v 2>&1 || true; } | grep -q '^wrk ' || return 0
  apt_unpack "$place" wrk libluajit-5.1-2
  local luajit
  luajit=$(find "$place/usr/lib" -name 'libluajit-5.1.so.2' | head -n 1)
  printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$(dirname "$luajit")" "$place/usr/bin/wrk" >"$wrk"
  chmod +x "$wrk"
  { "$wrk" -v 2>&1 || true; } | grep -q '^wrk ' || die "Debian's package wrk brought no program that runs here"
}
