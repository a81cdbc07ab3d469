# Gets what the filter is built with, and builds it. Sourced after common.sh.
# shellcheck shell=bash

wasm_target=wasm32-unknown-unknown
# Used by the scripts that source this.
# shellcheck disable=SC2034
wasm_module=target/$wasm_target/release/nimgate.wasm

# Sets `wasm_cargo` to the command that builds for the wasm target, and `wasm_cargo_flags` to what it needs.
#
# The usual way is rustup. Where it can't download the target (a closed network), Debian's rustc-web, cargo-web and
# rust-web-src of one version build the standard library along with the filter. NIMGATE_WASM_TOOLCHAIN chooses one of
# the two, `rustup` or `debian`, and fails where it can't be had.
find_wasm_toolchain() {
  have cargo || die "cargo is not installed; get Rust from https://rustup.rs, or Debian's package rustup"
  local choice=${NIMGATE_WASM_TOOLCHAIN:-}
  case $choice in
    "" | rustup | debian) ;;
    *) die "NIMGATE_WASM_TOOLCHAIN must be rustup or debian, got $choice" ;;
  esac
  if [ "$choice" != debian ]; then
    if rustup_target; then
      wasm_cargo=(cargo)
      wasm_cargo_flags=()
      return
    fi
    [ -z "$choice" ] || die "rustup could not add the target $wasm_target; its own words are above"
    say "rustup can't add the target $wasm_target; taking Debian's packages instead"
  fi
  debian_toolchain
}

# Adds the target with rustup, unless it is there.
rustup_target() {
  local libdir
  libdir=$(rustc --print target-libdir --target $wasm_target 2>/dev/null) || return 1
  [ -e "$libdir" ] && return 0
  have rustup || return 1
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
}

debian_source() {
  printf '%s/lib/rustlib/src/rust/library' "$(/usr/bin/rustc --print sysroot 2>/dev/null)"
}

# Builds the filter.
build_filter() {
  find_wasm_toolchain
  "${wasm_cargo[@]}" build --locked --release -p nimgate --target $wasm_target "${wasm_cargo_flags[@]}" >&2 ||
    die "the filter does not build; the compiler's words are above"
}

# Node and the runner for tests on the wasm target, of the very version that Cargo.lock names for wasm-bindgen.
# Sets `wasm_test_runner`.
find_wasm_test_runner() {
  have node || apt_install nodejs
  local version
  version=$(sed -n '/^name = "wasm-bindgen"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock)
  [ -n "$version" ] || die "Cargo.lock names no version of wasm-bindgen"
  wasm_test_runner=$tools/bin/wasm-bindgen-test-runner
  if ! "$wasm_test_runner" --version 2>/dev/null | grep -qF " $version"; then
    say "installing wasm-bindgen-cli $version into .tools (some minutes, once)"
    CARGO_TARGET_DIR=$tools/build cargo install -q wasm-bindgen-cli --version "$version" --root "$tools" --force >&2 ||
      die "wasm-bindgen-cli $version could not be installed; cargo's words are above"
    rm -rf "$tools/build"
  fi
}
