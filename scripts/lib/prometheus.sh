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
  ! { "$prometheus" --version && "$promtool" --version; } >/dev/null 2>&1 || return 0
  have apt-get && have dpkg-deb ||
    die "prometheus and promtool are needed to check envoy/prometheus and envoy/grafana, and this system has no apt-get to get them with; install them by hand"
  say "getting Debian's package prometheus into .tools/prometheus"
  rm -rf "$place"
  mkdir -p "$place"
  # The lists of packages may be missing or old; only root can renew them.
  (cd "$place" && apt-get download -qq prometheus) >&2 ||
    { [ "$(id -u)" = 0 ] && apt-get update -qq >&2 && (cd "$place" && apt-get download -qq prometheus) >&2; } ||
    die "apt-get download prometheus failed; its own words are above. Is the package registry reachable? Run: apt-get update"
  dpkg-deb -x "$place"/prometheus_*.deb "$place" || die "the package prometheus could not be unpacked"
  rm -f "$place"/prometheus_*.deb
  "$promtool" --version >/dev/null 2>&1 || die "the package prometheus brought no promtool that runs here"
}
