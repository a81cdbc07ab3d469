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

# Runs pytest with the arguments given, against the Envoy in `envoy_binary`. The tests wait most of the time, so several
# processes run them; those that share an Envoy stay together.
end_to_end_with() {
  NIMGATE_WASM=$root/$wasm_module NIMGATE_ENVOY=$envoy_binary NIMGATE_FAKE=$root/target/release/fake-nvidia \
    NIMGATE_CHROMIUM=$chromium NIMGATE_PROMETHEUS=$prometheus \
    "$e2e_python" -m pytest -n "${NIMGATE_E2E_PROCESSES:-4}" --dist loadgroup "$@"
}

# Runs what a file names, one of pytest's arguments a line.
end_to_end_listed() {
  local arguments
  mapfile -t arguments < <(grep -v '^#' "$1")
  end_to_end_with "${arguments[@]}"
}
