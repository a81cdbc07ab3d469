# Gets what the filter is built with, and builds it. Sourced after common.sh.
# shellcheck shell=bash

wasm_target=wasm32-unknown-unknown
# Used by the scripts that source this.
# shellcheck disable=SC2034
wasm_module=target/$wasm_target/release/nimgate.wasm

# Makes `cargo` one that can build this. The usual one is rustup's, which gets the version in rust-toolchain.toml by itself
# when it is asked for its version. Where there is none, or it can't download, Debian's takes its place.
find_cargo() {
  ! recent_cargo cargo || return 0
  say "there is no cargo of the version in rust-toolchain.toml; taking Debian's packages instead"
  recent_cargo /usr/bin/cargo || apt_install rustc-web cargo-web
  recent_cargo /usr/bin/cargo || die "Debian's cargo is too old; get Rust from https://rustup.rs"
  # Before rustup's, whose place in the PATH is that of the same names.
  export PATH=/usr/bin:$PATH RUSTC=/usr/bin/rustc
}

# Whether the command is a cargo not older than Cargo.toml asks for.
recent_cargo() {
  local oldest version
  oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  version=$("$1" --version 2>/dev/null) || return 1
  [ "$(printf '%s\n' "$oldest" "$(cut -d' ' -f2 <<<"$version")" | sort -V | head -n 1)" = "$oldest" ]
}

# The formatter and the linter that go with it.
find_rust_lints() {
  find_cargo
  if [ "$(command -v cargo)" = /usr/bin/cargo ]; then
    cargo fmt --version >/dev/null 2>&1 || apt_install rustfmt-web
    cargo clippy --version >/dev/null 2>&1 || apt_install rust-web-clippy
  else
    { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1 || rustup component add rustfmt clippy >&2 ||
      die "rustup could not add rustfmt and clippy; its own words are above"
  fi
}

# Sets `wasm_cargo` to the command that builds for the wasm target, `wasm_cargo_flags` to what it needs, and `wasm_linker`
# to the linker.
#
# The usual way is rustup. Where it can't download the target (a closed network), Debian's rustc-web, cargo-web and
# rust-web-src of one version build the standard library along with the filter. NIMGATE_WASM_TOOLCHAIN chooses one of
# the two, `rustup` or `debian`, and fails where it can't be had.
find_wasm_toolchain() {
  find_cargo
  local choice=${NIMGATE_WASM_TOOLCHAIN:-}
  case $choice in
    "" | rustup | debian) ;;
    *) die "NIMGATE_WASM_TOOLCHAIN must be rustup or debian, got $choice" ;;
  esac
  if [ "$choice" != debian ]; then
    if rustup_target; then
      wasm_cargo=(cargo)
      wasm_cargo_flags=()
      wasm_linker=$(rustc --print sysroot)/lib/rustlib/$(rustc --print host-tuple)/bin/rust-lld
      return
    fi
    [ -z "$choice" ] || die "rustup could not add the target $wasm_target; its own words are above"
    say "rustup does not provide the target $wasm_target here; taking Debian's packages instead"
  fi
  debian_toolchain
}

# Adds the target with rustup, unless it is there.
rustup_target() {
  local libdir
  libdir=$(rustc --print target-libdir --target $wasm_target 2>/dev/null) || return 1
  [ -e "$libdir" ] && return 0
  # What rustup adds is of no use to a compiler that is not rustup's.
  have rustup && [ "$(command -v rustc)" != /usr/bin/rustc ] || return 1
  rustup target add $wasm_target >&2
}

debian_toolchain() {
  local version
  version=$(dpkg-query -W -f '${Version}' rustc-web 2>/dev/null || true)
  if [ -z "$version" ] || [ ! -x /usr/bin/cargo ] || [ ! -d "$(debian_source)" ] || ! have wasm-ld; then
    apt_install rustc-web cargo-web rust-web-src lld
  fi
  [ -d "$(debian_source)" ] ||
    die "rust-web-src did not bring the standard library's source to $(debian_source); is it of rustc-web's version?"
  wasm_cargo=(env RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc RUSTUP_TOOLCHAIN='' CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER="$(command -v wasm-ld)" /usr/bin/cargo)
  wasm_cargo_flags=('-Zbuild-std=std,panic_abort')
  wasm_linker=$(command -v wasm-ld)
}

debian_source() {
  printf '%s/lib/rustlib/src/rust/library' "$(/usr/bin/rustc --print sysroot 2>/dev/null)"
}

# Builds the filter. Where sources lie must make no difference to its bytes, so panic messages name them without that.
build_filter() {
  find_wasm_toolchain
  # So that the directories named below are there.
  "${wasm_cargo[@]}" fetch --locked --target $wasm_target >&2 || die "crates can't be fetched; cargo's words are above"
  local flags directory
  flags="\"--remap-path-prefix=$root=nimgate\""
  for directory in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    flags+=", \"--remap-path-prefix=$directory=crates\""
  done
  filter_linker
  "${wasm_cargo[@]}" build --locked --release -p nimgate --target $wasm_target "${wasm_cargo_flags[@]}" \
    "${filter_linker[@]}" --config "target.$wasm_target.rustflags=[$flags]" >&2 ||
    die "the filter does not build; the compiler's words are above"
}

# Sets `filter_linker` to the options with which cargo links the module without exports that nobody needs. Cargo does not
# know of the list of those, so lib.rs names it as something that it is made of.
filter_linker() {
  export NIMGATE_LINKER=$wasm_linker
  filter_linker=(--config "target.$wasm_target.linker=\"$root/scripts/lib/wasm_linker\"")
}

# Node and the runner for tests on the wasm target, of the very version that Cargo.lock names for wasm-bindgen.
# Sets `wasm_test_runner`.
find_wasm_test_runner() {
  have node || apt_install nodejs
  local version
  version=$(sed -n '/^name = "wasm-bindgen"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock)
  [ -n "$version" ] || die "Cargo.lock names no version of wasm-bindgen"
  wasm_test_runner=$tools/bin/wasm-bindgen-test-runner
  if [[ $("$wasm_test_runner" --version 2>/dev/null) != *" $version"* ]]; then
    say "installing wasm-bindgen-cli $version into .tools (some minutes, once)"
    CARGO_TARGET_DIR=$tools/build cargo install -q wasm-bindgen-cli --version "$version" --root "$tools" --force >&2 ||
      die "wasm-bindgen-cli $version could not be installed; cargo's words are above"
    rm -rf "$tools/build"
  fi
}
