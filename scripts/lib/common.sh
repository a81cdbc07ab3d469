# What all scripts share: where things are, and how to speak. Sourced, not run.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Everything that the scripts install for this project alone; git ignores it.
tools=$root/.tools
cd "$root" || exit 1
# envoy/listeners.yaml names the module by its path, so a target directory that a person keeps elsewhere must not count.
export CARGO_TARGET_DIR=$root/target

say() { printf '%s\n' "$*" >&2; }

# Ends with a sentence that tells what is wrong and what to do.
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Installs Debian packages, as root or through sudo without a password.
apt_install() {
  have apt-get || die "$* must be installed, and this system has no apt-get to do it with; install them by hand"
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    have sudo && sudo -n true 2>/dev/null ||
      die "$* must be installed, and that needs root; run: sudo apt-get install $*"
    as_root=(sudo -n)
  fi
  say "installing $* with apt-get"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2 ||
    die "apt-get update failed; is the package registry reachable?"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >&2 ||
    die "apt-get install $* failed; its own words are above"
}
