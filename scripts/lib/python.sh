# Private Python environments, so that nothing on the machine is changed and nothing on it is relied upon. Sourced after
# common.sh.
# shellcheck shell=bash

find_python() { have python3 || apt_install python3 python3-venv; }

# Makes the environment NAME with the requirements FILE, or brings it up to date, and sets `python` to its interpreter.
python_environment() {
  local name=$1 requirements=$2
  local environment=$tools/$name
  local mark=$environment/requirements.installed
  python=$environment/bin/python
  cmp -s "$requirements" "$mark" && [ -x "$python" ] && return
  find_python
  say "installing $(basename "$requirements") into .tools/$name"
  rm -rf "$environment"
  if ! python3 -m venv "$environment" >/dev/null 2>&1; then
    rm -rf "$environment"
    apt_install python3-venv
    python3 -m venv "$environment" || die "python3 can't make a virtual environment; its own words are above"
  fi
  "$python" -m pip install -q --disable-pip-version-check -r "$requirements" >&2 ||
    die "pip could not install $requirements; its own words are above"
  cp "$requirements" "$mark"
}
