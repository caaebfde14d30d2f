#!/bin/sh
# Makes all that a release publishes out of its binaries. Of the same binaries and the same commit it makes the same bytes.
# usage: assemble.sh TOOLS_DIR TARGET_DIR AUTHORITIES REGISTRY OUT
# TARGET_DIR is where binaries.sh put them, AUTHORITIES are the certificates of the image, REGISTRY is where all of it will be.
set -eu
umask 022
cd "$(dirname "$0")/.."
tools=$(realpath "$1")
target=$(realpath "$2")
authorities=$(realpath "$3")
registry=$4
rm -rf "$5"
mkdir -p "$5"
out=$(realpath "$5")
work=$(mktemp -d)
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
trap '$sudo rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
image=$registry/ocivol/ocivol
triple() { case $1 in amd64) echo x86_64-unknown-linux-musl ;; arm64) echo aarch64-unknown-linux-musl ;; esac; }
# packed ARCHIVE DIRECTORY NAME: with nothing in it of who packed it, and when.
packed() {
	tar -c -C "$2" --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime="@$SOURCE_DATE_EPOCH" "$3" | gzip -n9 >"$1"
}

# The command line: binary, completions, manual.
ocivol=$target/$(triple amd64)/release/ocivol
for architecture in amd64 arm64; do
	name=ocivol-$version-linux-$architecture
	mkdir -p "$work/$name/completions" "$work/$name/man"
	cp "$target/$(triple $architecture)/release/ocivol" LICENSE "$work/$name"
	"$ocivol" man "$work/$name/man"
	for shell in bash zsh fish; do
		"$ocivol" completion "$shell" >"$work/$name/completions/ocivol.$shell"
	done
	packed "$out/$name.tar.gz" "$work" "$name"
done

# What the binaries are made of. The tool writes beside each Cargo.toml of the workspace, so it gets a copy.
mkdir "$work/source"
git ls-files -z '*.rs' '*.toml' Cargo.lock | tar -c --null -T - | tar -x -C "$work/source"
for architecture in amd64 arm64; do
	(cd "$work/source" && "$tools/bin/cargo-cyclonedx" cyclonedx --quiet --format json --spec-version 1.5 --target "$(triple $architecture)")
	sed -e "s|path+file://$work/source|path+file:///ocivol|" -e 's|?download_url=file://[^"]*||' "$work/source/ocivol.cdx.json" \
		>"$out/ocivol-$version-linux-$architecture.cdx.json"
done

# The images, and an index of them.
facts="org.opencontainers.image.title=ocivol
org.opencontainers.image.version=$version
org.opencontainers.image.revision=$(git rev-parse HEAD)
org.opencontainers.image.created=$created
org.opencontainers.image.source=https://github.com/ocivol/ocivol
org.opencontainers.image.licenses=Apache-2.0"
# flags FLAG: that flag with each of them.
flags() { echo "$facts" | sed "s/^/$1=/"; }
buildah="$sudo buildah --root $work/storage --runroot $work/run --storage-driver vfs"
for architecture in amd64 arm64; do
	mkdir "$work/$architecture"
	cp "$target/$(triple $architecture)/release/ocivol" "$work/$architecture/ocivol"
	cp "$authorities" "$work/$architecture/ca-certificates.crt"
	$buildah build --quiet --identity-label=false --timestamp "$SOURCE_DATE_EPOCH" --platform "linux/$architecture" $(flags --label) \
		--tag "$architecture" -f Dockerfile "$work/$architecture" >/dev/null
	$buildah push --quiet "localhost/$architecture" "oci:$out/image:$architecture"
done
$sudo chown -R "$(id -u):$(id -g)" "$out/image"
"$tools/oras" manifest index create --oci-layout $(flags --annotation) "$out/image:$version" amd64 arm64 >/dev/null
digest=$("$tools/oras" resolve --oci-layout "$out/image:$version")

# The chart, which starts that image and no other as long as nobody chooses one.
cp -r charts/ocivol "$work/chart"
sed -i "s|ghcr.io/ocivol/ocivol|$image|" "$work/chart/values.yaml" "$work/chart/Chart.yaml"
sed -i "s|^annotations:|&\n  ocivol.dev/image-digest: $digest|; s|$image:$version|&@$digest|" "$work/chart/Chart.yaml"
"$tools/../bin/helm" package "$work/chart" --destination "$work" >/dev/null
tar -xzmf "$work/ocivol-$version.tgz" -C "$work"
packed "$out/ocivol-$version.tgz" "$work" ocivol
# helm says in the registry that the chart was created at this time.
touch -d "@$SOURCE_DATE_EPOCH" "$out/ocivol-$version.tgz"
sed "s|ghcr.io/ocivol/ocivol:$version|$image@$digest|" manifests/install.yaml >"$out/install.yaml"

echo "$image:$version@$digest" >"$out/image.txt"

(cd "$out" && sha256sum ./*.* | sed 's|\./||' >"$work/sums" && mv "$work/sums" SHA256SUMS)
