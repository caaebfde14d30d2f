#!/bin/sh
# Makes tests/fixtures anew from what push.sh pushed: an OCI image layout for each first part of a repository's name.
# A layout's references are the second part, for tags other than v1 with the tag: oras/file:v1 is file, helm/demo:0.1.0 is demo-0.1.0.
# WORKDIR, that of push.sh, has the public keys of what was signed.
# usage: capture.sh REGISTRY_HOST WORKDIR
set -eu
host=$1
work=$(realpath "$2")
fixtures=$(dirname "$(dirname "$(realpath "$0")")")/fixtures
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
mkdir -p "$fixtures"
oras repo ls --plain-http "$host" >"$cache/repositories"
cut -d / -f 1 "$cache/repositories" | sort -u | while read -r name; do
	rm -rf "${fixtures:?}/$name"
done
while read -r repository; do
	for tag in $(oras repo tags --plain-http "$host/$repository"); do
		name=${repository#*/}
		[ "$tag" = v1 ] || name=$name-$tag
		# What refers to an artifact comes along.
		oras copy --recursive --no-tty --from-plain-http --to-oci-layout "$host/$repository:$tag" "$fixtures/${repository%%/*}:$name" >/dev/null
	done
done <"$cache/repositories"
rm -rf "$fixtures/keys"
cp -r "$work/keys" "$fixtures/keys"
# oras writes them in any order.
python3 - "$fixtures"/*/index.json <<'END'
import json, sys
for path in sys.argv[1:]:
    index = json.load(open(path))
    index["manifests"].sort(key=lambda entry: (entry.get("annotations", {}).get("org.opencontainers.image.ref.name", "~"), entry["digest"]))
    with open(path, "w") as file:
        json.dump(index, file, indent=1)
        file.write("\n")
END
find "$fixtures" -type d -name ingest -empty -delete
du -sb "$fixtures"/*/ | awk '{ sum += $1; print } END { print sum " bytes" }'
