# Builds the module with all bugs of tests/sim/mutants.toml planted in it. Sourced after common.sh and toolchain.sh.
# shellcheck shell=bash

# Sets `planted_module` and `planted_list`: the module, and the list of its bugs that nimgate-sim reads.
build_planted_filter() {
  find_wasm_toolchain
  have python3 || apt_install python3
  local place=$CARGO_TARGET_DIR/mutants
  mkdir -p "$place"
  python3 scripts/lib/plant_mutants.py "$place" || die "the bugs of tests/sim/mutants.toml can't be planted"
  # Warnings about code that a bug has made useless say nothing.
  (cd "$place/tree" && CARGO_TARGET_DIR=$place/build RUSTFLAGS="--cap-lints warn" "${wasm_cargo[@]}" build -q \
    --release -p nimgate --target $wasm_target "${wasm_cargo_flags[@]}" 2>"$place/build.log") ||
    { tail -n 40 "$place/build.log" >&2 && die "the filter with planted bugs does not build"; }
  planted_module=$place/build/$wasm_target/release/nimgate.wasm
  planted_list=$place/mutants.json
}
