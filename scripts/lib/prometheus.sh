# Finds Prometheus and its promtool, or gets them. Sourced after common.sh.
# shellcheck shell=bash

# Sets `prometheus` and `promtool`: those on the PATH, else Debian's package, unpacked into .tools so that nothing is
# installed and no service is started.
find_prometheus() {
  if have prometheus && have promtool; then
    prometheus=$(command -v prometheus) promtool=$(command -v promtool)
    return
  fi
  local place=$tools/prometheus
  prometheus=$place/usr/bin/prometheus promtool=$place/usr/bin/promtool
  alone prometheus unpack_prometheus "$place" || exit 1
}

unpack_prometheus() {
  local place=$1
  ! { "$prometheus" --version && "$promtool" --version; } >/dev/null 2>&1 || return 0
  apt_unpack "$place" prometheus
  "$promtool" --version >/dev/null 2>&1 || die "the package prometheus brought no promtool that runs here"
}
