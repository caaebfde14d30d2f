#!/bin/sh
# Pulls what push.sh pushed with the tools that made it: what each leaves is in WORKDIR/expected, as cases.tsv names it.
# usage: pull.sh REGISTRY_HOST WORKDIR [TOOL]
set -eu
umask 022
. "$(dirname "$0")/tools.sh"
script=$(realpath "$0")
host=$1
work=$(realpath "$2")
expected=$work/expected
mkdir -p "$work/home" "$work/tmp"
export TMPDIR="$work/tmp" HOME="$work/home" GNUPGHOME="$work/home/gnupg" XDG_CONFIG_HOME="$work/home/config"
unset XDG_CACHE_HOME XDG_DATA_HOME DOCKER_CONFIG

# image NAME REFERENCE [SKOPEO_OPTION…]: the root file system.
image() {
	name=$1 reference=$2
	shift 2
	rm -rf "$work/layouts/$name"
	mkdir -p "$work/layouts"
	skopeo copy --quiet --src-tls-verify=false "docker://$host/$reference" "$@" "oci:$work/layouts/$name:v1"
	umoci raw unpack --image "$work/layouts/$name:v1" "$expected/$name"
}

pull_oras() {
	pull() {
		name=$1
		shift
		oras pull --plain-http --output "$expected/oras-$name" "$@"
	}
	for name in file files directory here mixed typed config old wasm; do
		pull $name "$host/oras/$name:v1"
	done
	# oras skips layers without a title.
	mkdir "$expected/oras-wasm-bare"
	layer=$(oras manifest fetch --plain-http "$host/oras/wasm-bare:v1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["layers"][0]["digest"])')
	oras blob fetch --plain-http --output "$expected/oras-wasm-bare/module.wasm" "$host/oras/wasm-bare@$layer"
	pull index-one "$host/oras/index:one"
	pull platform --platform linux/arm64 "$host/oras/platforms:v1"
}

pull_orasPy() {
	python3 - "$host" "$expected" <<-'END'
		import sys
		import oras.client
		client, host, expected = oras.client.OrasClient(insecure=True), sys.argv[1], sys.argv[2]
		for name in "files", "directory":
		    client.pull(target=f"{host}/oras-py/{name}:v1", outdir=f"{expected}/oras-py-{name}")
	END
	# It unpacks what is not marked for that; oras does not.
	oras pull --plain-http --output "$expected/oras-py-packed" "$host/oras-py/directory:v1"
}

pull_modelpack() {
	for name in raw tar; do
		modelpack --insecure pull "$host/modelpack/$name:v1" "$expected/modelpack-$name"
	done
}

pull_kitops() {
	export KITOPS_HOME="$work/home/kitops"
	kit unpack --plain-http "$host/kitops/kit:v1" --dir "$expected/kitops"
	# kit writes it as YAML; a volume has it as JSON.
	rm "$expected/kitops/Kitfile"
}

pull_helm() {
	pull() {
		mkdir -p "$expected/helm-$1"
		name=$1 version=$2
		shift 2
		helm pull --plain-http "oci://$host/helm/demo" --version "$version" --destination "$expected/helm-$name" "$@"
	}
	pull packed 0.1.0
	pull packed-signed 0.2.0 --prov
	pull packed-plus 0.3.0+build.1
	for version in 0.1.0 0.2.0 0.3.0+build.1; do
		# With --untar the archive stays where --destination says.
		mkdir -p "$work/helm-untar"
		(cd "$work/helm-untar" && helm pull --plain-http "oci://$host/helm/demo" --version $version --untar --untardir "$expected/helm-$version")
	done
}

pull_flux() {
	for name in directory file; do
		mkdir -p "$expected/flux-$name"
		flux pull artifact --insecure-registry "oci://$host/flux/$name:v1" --output "$expected/flux-$name"
	done
}

pull_buildah() {
	image buildah buildah/image:v1
	# umoci knows no zstd.
	buildah="buildah --root $work/storage --runroot $work/run --storage-driver vfs"
	container=$($buildah from --quiet --tls-verify=false "docker://$host/buildah/zstd:v1")
	mkdir "$expected/buildah-zstd"
	cp -a "$($buildah mount "$container")/." "$expected/buildah-zstd"
	$buildah rm "$container" >/dev/null
	for name in index list; do
		image buildah-$name buildah/$name:v1 --override-arch arm64
	done
}

pull_skopeo() {
	image skopeo-v2s2 skopeo/v2s2:v1
	image skopeo-list skopeo/list:v1 --override-arch arm64
}

# Signatures have nothing to pull: the tool verifies what push.sh made.
pull_cosign() {
	cd "$HOME"
	for form in legacy bundle; do
		new=true
		[ $form = bundle ] || new=false
		key="--key cosign.pub --allow-http-registry --insecure-ignore-tlog --new-bundle-format=$new"
		cosign verify $key "$host/cosign/$form:v1"
		cosign verify-attestation $key --type spdxjson "$host/cosign/$form:v1"
	done
	image cosign-legacy cosign/legacy:v1
}

pull_notation() {
	notation list --insecure-registry "$host/notation/image:v1"
	image notation notation/image:v1
}

pull_tkn() {
	# tkn only prints: a bundle is an image whose layers hold a file each.
	tkn bundle list "$host/tkn/bundle:v1"
	image tkn tkn/bundle:v1
}

if [ $# -gt 2 ]; then
	"pull_$3"
else
	rm -rf "$expected"
	mkdir -p "$expected"
	each "$script" "$host" "$work"
fi
