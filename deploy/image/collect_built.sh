#!/usr/bin/env bash
# collect_built.sh PRESET OUT: after `./dev build PRESET overfill-server`,
# gathers in OUT what goes into the image of it: the program, its licence, and
# the licences of the packages whose headers were compiled into it. No shared
# library stands for those, yet an inventory has to name them.
set -euo pipefail
readonly preset=$1 out=$2
readonly doc=$out/usr/share/doc/overfill-server

# The packages that own the system's headers among what was compiled.
header_packages() {
  ninja -C "build/$preset" -t deps | awk '$1 ~ /^\/usr\// { print $1 }' |
    sort -u | xargs -r dpkg -S | sed 's/: \/.*//; s/:.*//' | sort -u
}

install -D "build/$preset/server/overfill-server" "$out/usr/bin/overfill-server"
install -D -m 644 LICENSE "$doc/copyright"
for package in $(header_packages); do
  licence=compiled_in/$package.copyright
  install -D -m 644 "/usr/share/doc/$package/copyright" "$doc/$licence"
  dpkg-query -W -f="compiled_in\t\${Package}\t\${Version}\t\${source:Package}\t\
\${source:Version}\t/usr/share/doc/overfill-server/$licence\n" "$package"
done >"$out/compiled_in.tsv"
[[ -s $out/compiled_in.tsv ]] ||
  { echo "no header of any package was compiled in?" >&2; exit 1; }
