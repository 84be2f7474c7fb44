#!/usr/bin/env bash
# make_rootfs.sh BUILT ROOT PACKAGES...: makes ROOT, the root file system of an
# image: the packages that the files PACKAGES name, whole, but without running
# their scripts (so that no shell has to be there), and what collect_built.sh
# gathered in BUILT. Fails unless the libraries of PACKAGES are exactly those
# that the program loads. Times are SOURCE_DATE_EPOCH's.
set -euo pipefail
readonly built=$1 root=$2
shift 2
readonly packages=("$@")
readonly program=$root/usr/bin/overfill-server
readonly database=$root/var/lib/dpkg
readonly inventory=$root/usr/share/doc/overfill-server/packages.tsv
debs=$(mktemp -d)
trap 'rm -rf "$debs"' EXIT

die() { printf 'make_rootfs: %s\n' "$*" >&2; exit 1; }

# names KIND...: of the files PACKAGES.
names() {
  local kind
  for kind in "$@"; do
    awk -v kind="$kind" '$1 == kind { print $2 }' "${packages[@]}"
  done
}

fetch_packages() {
  # Into a folder that is root's alone.
  local options=(-qq -o APT::Sandbox::User=root)
  apt-get update "${options[@]}" && cd "$debs" &&
    apt-get download "${options[@]}" "$@"
}

download() {
  local list
  mapfile -t list < <(names library data)
  # Twice: a mirror may be in the middle of an update.
  (fetch_packages "${list[@]}") ||
    { sleep 5 && (fetch_packages "${list[@]}"); } ||
    die "cannot download the packages"
  rm -rf /var/lib/apt/lists/*
}

# What Debian's installer and maintainer scripts would leave.
skeleton() {
  local name
  mkdir -p "$root"/{etc,models} "$root"/usr/{bin,sbin,lib,lib64} \
    "$database/info" "$database/updates"
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  echo 1 >"$database/info/format"  # names of files may carry the architecture
  printf '%s\n' 'root:x:0:0:root:/root:/usr/sbin/nologin' \
    'nonroot:x:65532:65532:nonroot:/nonexistent:/usr/sbin/nologin' \
    >"$root/etc/passwd"
  printf '%s\n' 'root:x:0:' 'nonroot:x:65532:' >"$root/etc/group"
  echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
}

# unpack DEB: its files, its entry in dpkg's database, its line in the
# inventory.
unpack() {
  local deb=$1 control name file path
  control=$(mktemp -d -p "$debs")
  dpkg-deb --fsys-tarfile "$deb" |
    tar -x -C "$root" --keep-directory-symlink
  dpkg-deb --ctrl-tarfile "$deb" | tar -x -C "$control"
  name=$(dpkg-deb -f "$deb" Package)
  file=$database/info/$name
  [[ $(dpkg-deb -f "$deb" Multi-Arch) != same ]] ||
    file+=:$(dpkg-deb -f "$deb" Architecture)
  dpkg-deb --fsys-tarfile "$deb" | tar -t |
    sed 's,^\./,/,; s,^/$,/.,; s,\(.\)/$,\1,' >"$file.list"
  cp "$control/md5sums" "$file.md5sums"
  {
    sed '/^Package:/a Status: install ok installed' "$control/control"
    if [[ -s $control/conffiles ]]; then
      echo "Conffiles:"
      while read -r path; do
        echo " $path $(md5sum <"$root$path" | cut -d ' ' -f 1)"
      done <"$control/conffiles"
    fi
    echo
  } >>"$database/status"
  dpkg-deb --show --showformat="package\t\${Package}\t\${Version}\t\
\${source:Package}\t\${source:Version}\t\
/usr/share/doc/\${Package}/copyright\n" "$deb" >>"$inventory"
}

finish_inventory() {
  local line path
  cat "$built/compiled_in.tsv" >>"$inventory"
  sort -o "$inventory" "$inventory"
  sed -i '1i kind\tname\tversion\tsource\tsource_version\tlicence' "$inventory"
  tail -n +2 "$inventory" | while IFS=$'\t' read -r line; do
    path=$root${line##*$'\t'}
    [[ -s $path ]] || die "no licence: $line"
  done
}

# owners FILE...: which packages of the image they are of.
owners() {
  local path
  for path in "$@"; do
    path=$(readlink -f "$path")
    path=${path#"$root"}
    # A package may state the path from before /lib became /usr/lib.
    grep -lxF -e "$path" -e "${path#/usr}" "$database"/info/*.list ||
      die "$path is of no package that is listed"
  done | sed 's,.*/,,; s,\.list$,,; s,:.*,,' | sort -u
}

check_libraries() {
  local folders loaded needed listed outside
  folders=$(find "$root/usr" -name '*.so.*' -printf '%h\n' | sort -u |
    paste -sd:)
  # The kernel brings one library, and a GPU's driver may bring others.
  mapfile -t outside < <(echo linux-vdso.so.1; names driver)
  loaded=$("$root/lib64/ld-linux-x86-64.so.2" --inhibit-cache \
    --library-path "$folders" --list "$program" |
    grep -vF "${outside[@]/#/-e}") || die "the loader does not take the program"
  ! grep "not found" <<<"$loaded" || die "no package has these libraries"
  mapfile -t loaded < <(grep -o '/[^ ]*' <<<"$loaded" | sort -u)
  needed=$(owners "${loaded[@]}")
  listed=$(names library | sort)
  diff <(echo "$listed") <(echo "$needed") >&2 ||
    die "the packages listed as libraries (<) are not those that are needed (>)"
}

skeleton
cp -r "$built/usr" "$root/"
download
for deb in "$debs"/*.deb; do unpack "$deb"; done
finish_inventory
check_libraries
# Only the server is there to be run, and only root owns files.
find "$root/etc" -type f -exec chmod a-x {} +
find "$root" -exec chown -h 0:0 {} +
find "$root" -type d -perm /6000 -exec chmod ug-s,g-w {} +
find "$root" -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +
