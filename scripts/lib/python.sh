# Private Python environments, so that nothing on the machine is changed and nothing on it is relied upon. Sourced after
# common.sh.
# shellcheck shell=bash

find_python() { have python3 || apt_install python3 python3-venv; }

# Makes the environment NAME with the requirements FILE, or brings it up to date, and sets `python` to its interpreter.
python_environment() {
  local environment=$tools/$1
  python=$environment/bin/python
  alone "$1" make_python_environment "$environment" "$2" || exit 1
}

make_python_environment() {
  local environment=$1 requirements=$2
  local mark=$environment/requirements.installed
  ! cmp -s "$requirements" "$mark" || [ ! -x "$environment/bin/python" ] || return 0
  find_python
  say "installing $(basename "$requirements") into ${environment#"$root"/}"
  rm -rf "$environment"
  if ! python3 -m venv "$environment" >/dev/null 2>&1; then
    rm -rf "$environment"
    apt_install python3-venv
    python3 -m venv "$environment" || die "python3 can't make a virtual environment; its own words are above"
  fi
  "$environment/bin/python" -m pip install -q --disable-pip-version-check -r "$requirements" >&2 ||
    die "pip could not install $requirements; its own words are above"
  cp "$requirements" "$mark"
}
