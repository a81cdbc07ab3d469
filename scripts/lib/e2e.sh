# Gets what the end-to-end tests need, and runs them. Sourced after common.sh, toolchain.sh, python.sh, envoy.sh and
# prometheus.sh.
# shellcheck shell=bash

# Sets `chromium` to the browser in which the dashboard is looked at.
find_chromium() {
  have chromium || have chromium-browser || have google-chrome || apt_install chromium
  chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
}

# Gets everything but Envoy.
prepare_end_to_end() {
  build_filter
  cargo build --locked --release -q -p fake-nvidia
  find_chromium
  find_prometheus
  python_environment e2e tests/e2e/requirements.txt
  e2e_python=$python
}

# Runs pytest with the arguments given, against the Envoy in `envoy_binary`.
end_to_end_with() {
  NIMGATE_WASM=$root/$wasm_module NIMGATE_ENVOY=$envoy_binary NIMGATE_FAKE=$root/target/release/fake-nvidia \
    NIMGATE_CHROMIUM=$chromium NIMGATE_PROMETHEUS=$prometheus \
    "$e2e_python" -m pytest "$@"
}
