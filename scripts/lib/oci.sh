# Finds what images are pushed with, and a registry to push to in tests; or gets them. Sourced after common.sh.
# shellcheck shell=bash

# Sets `skopeo`: the one on the PATH, else Debian's, unpacked into .tools.
find_skopeo() {
  if have skopeo; then
    skopeo=$(command -v skopeo)
    return
  fi
  local place=$tools/skopeo
  skopeo=$place/skopeo
  ! "$skopeo" --version >/dev/null 2>&1 || return 0
  have apt-cache || die "skopeo is needed for this, and this system has no apt to get it with; install it by hand"
  local libraries
  libraries=$(libraries_of skopeo)
  # shellcheck disable=SC2046,SC2086 # Names of packages, one word each.
  libraries=$(printf '%s\n' $libraries $(libraries_of $libraries) | sort -u)
  # shellcheck disable=SC2086
  apt_unpack "$place" skopeo $libraries
  cat >"$skopeo" <<END
#!/bin/sh
# Debian's skopeo with its libraries, wherever they lie unpacked.
here=\$(dirname "\$0")
LD_LIBRARY_PATH=\$(printf '%s:' "\$here"/lib/*-linux-gnu* "\$here"/usr/lib/*-linux-gnu*)\${LD_LIBRARY_PATH:-} \\
  exec "\$here/usr/bin/skopeo" "\$@"
END
  chmod +x "$skopeo"
  "$skopeo" --version >/dev/null || die "Debian's skopeo does not run here; its own words are above. Install skopeo by hand"
}

# The libraries that packages depend upon by name, without those that every system has and that must fit its kernel.
libraries_of() {
  apt-cache depends --important "$@" | sed -n 's/^ *Depends: \(lib[^ :]*\).*/\1/p' | grep -vxE 'libc6|libgcc-s1|libcrypt1' |
    sort -u || true
}

# Sets `registry` to a registry server: the one on the PATH, else Debian's, unpacked into .tools.
find_registry() {
  if have docker-registry; then
    registry=$(command -v docker-registry)
    return
  fi
  local place=$tools/docker-registry
  registry=$place/usr/bin/docker-registry
  ! "$registry" --version >/dev/null 2>&1 || return 0
  apt_unpack "$place" docker-registry
  "$registry" --version >/dev/null || die "Debian's docker-registry does not run here; its own words are above"
}
