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

# The version that is being worked on, or that was released with this commit.
project_version() { sed -n 's/^version = "\(.*\)"$/\1/p' filter/wasm/Cargo.toml; }

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command while no other process of the scripts runs one under this name: apt and pip want to be alone.
alone() {
  local name=$1
  shift
  mkdir -p "$tools"
  (flock 8 && "$@" 8>&-) 8>"$tools/$name.lock"
}

# Installs Debian packages, as root or through sudo without a password.
apt_install() { alone apt apt_install_alone "$@" || exit 1; }
apt_install_alone() {
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

# Unpacks Debian packages into a directory, so that nothing is installed and no service is started: apt_unpack PLACE
# PACKAGE... Needs no root where the lists of packages are there.
apt_unpack() { alone apt apt_unpack_alone "$@" || exit 1; }
apt_unpack_alone() {
  local place=$1
  shift
  have apt-get && have dpkg-deb || die "$* must be had, and this system has no apt-get to get them with; install them by hand"
  say "getting Debian's $* into ${place#"$root"/}"
  rm -rf "$place"
  mkdir -p "$place"
  # The lists of packages may be missing or old; only root can renew them.
  (cd "$place" && apt-get download -qq "$@") >&2 ||
    { [ "$(id -u)" = 0 ] && apt-get update -qq >&2 && (cd "$place" && apt-get download -qq "$@") >&2; } ||
    die "apt-get download $* failed; its own words are above. Is the package registry reachable? Run: apt-get update"
  local package
  for package in "$place"/*.deb; do
    dpkg-deb -x "$package" "$place" || die "$package could not be unpacked"
    rm -f "$package"
  done
}
