#!/bin/sh
# Makes small artifacts with the tools of other projects, and pushes them to a registry without TLS.
# usage: push.sh REGISTRY_HOST WORKDIR [TOOL]
set -eu
umask 022
. "$(dirname "$0")/tools.sh"
script=$(realpath "$0")
host=$1
mkdir -p "$2"
work=$(realpath "$2")
source=$work/source
# Keys, caches and logins of this run only.
mkdir -p "$work/home" "$work/tmp" "$work/keys"
export TMPDIR="$work/tmp" HOME="$work/home" GNUPGHOME="$work/home/gnupg" XDG_CONFIG_HOME="$work/home/config"
unset XDG_CACHE_HOME XDG_DATA_HOME DOCKER_CONFIG
epoch=1970-01-01T00:00:00Z
export SOURCE_DATE_EPOCH=0
buildah="buildah --root $work/storage --runroot $work/run --storage-driver vfs"

# Times get into archives.
still() { find "$@" -exec touch -h -d @0 {} +; }

digest() { skopeo inspect --tls-verify=false --format '{{.Digest}}' "docker://$1"; }

# copied NAME: buildah's image as another repository.
copied() { skopeo copy --quiet --src-tls-verify=false --dest-tls-verify=false "docker://$host/buildah/image:v1" "docker://$host/$1:v1"; }

sources() {
	rm -rf "$source"
	mkdir -p "$HOME" "$source/files/sub/dir" "$source/files/tree/bin" "$source/files/tree/none" "$source/manifests/base"
	install -d -m 700 "$GNUPGHOME"
	cd "$source/files"
	echo hello >hello.txt
	echo deep >sub/dir/deep.txt
	echo read >tree/readme.txt
	printf '#!/bin/sh\necho run\n' >tree/bin/run
	chmod 755 tree/bin/run
	ln -s readme.txt tree/link
	printf '\000asm\001\000\000\000' >module.wasm
	echo '{"created":"1970-01-01T00:00:00Z","architecture":"wasm","os":"wasip1","layerDigests":[]}' >wasm.json
	echo '{"key":"value"}' >config.json

	mkdir -p "$source/model/tokenizer" "$source/model/code" "$source/model/weights"
	cd "$source/model"
	# The header's length, the header, one number.
	printf '\074\000\000\000\000\000\000\000{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}      \000\000\200\077' >model.safetensors
	echo '{"architectures":["TinyModel"]}' >config.json
	cp model.safetensors weights/
	echo '# tiny' >README.md
	echo '{"hello":0}' >tokenizer/vocab.json
	echo 'print("tiny")' >code/run.py
	printf 'NAME tiny\nARCH transformer\nFAMILY tiny\nFORMAT safetensors\nCONFIG config.json\nCONFIG *.json\nMODEL *.safetensors\nCODE *.py\nDOC *.md\n' >"$source/Modelfile"
	cat >"$source/model.json" <<-'END'
		{"descriptor": {"createdAt": "1970-01-01T00:00:00Z", "name": "tiny", "version": "1.0.0"},
		 "config": {"architecture": "transformer", "format": "safetensors", "paramSize": "1", "precision": "float32"}}
	END

	cd "$source/manifests"
	printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: demo}\ndata: {key: value}\n' >base/configmap.yaml
	printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [configmap.yaml]\n' >base/kustomization.yaml
	echo notes >notes.txt

	cd "$source"
	cat >task.yaml <<-'END'
		apiVersion: tekton.dev/v1
		kind: Task
		metadata: {name: greet}
		spec: {steps: [{name: say, image: registry.example.com/shell:v1, script: echo hello}]}
	END
	cat >pipeline.yaml <<-'END'
		apiVersion: tekton.dev/v1
		kind: Pipeline
		metadata: {name: greeting}
		spec: {tasks: [{name: greet, taskRef: {name: greet}}]}
	END
	echo '{"spdxVersion":"SPDX-2.3","name":"tiny"}' >sbom.spdx.json
	still "$source"
}

push_oras() {
	cd "$source/files"
	push() { oras push --plain-http --annotation "org.opencontainers.image.created=$epoch" "$@"; }
	push "$host/oras/file:v1" hello.txt
	push "$host/oras/files:v1" hello.txt sub/dir/deep.txt:text/plain
	push "$host/oras/directory:v1" tree
	# The directory itself: its title is a dot.
	(cd tree && push "$host/oras/here:v1" .)
	# A directory below another, and beside a file.
	push "$host/oras/mixed:v1" hello.txt sub/dir
	push --artifact-type application/vnd.example.thing.v1 "$host/oras/typed:v1" hello.txt config.json:application/json
	push --config config.json:application/vnd.example.config.v1+json "$host/oras/config:v1" hello.txt
	# As oras 1.0 wrote it: the artifact type is the config's.
	push --image-spec v1.0 --artifact-type application/vnd.example.old.v1 "$host/oras/old:v1" hello.txt
	push --config wasm.json:application/vnd.wasm.config.v0+json "$host/oras/wasm:v1" module.wasm:application/wasm
	# Without a title, as other tools write it.
	oras blob push --plain-http --media-type application/wasm "$host/oras/wasm-bare" module.wasm
	oras blob push --plain-http --media-type application/vnd.wasm.config.v0+json "$host/oras/wasm-bare" wasm.json
	python3 - >"$work/wasm-manifest.json" <<-'END'
		import hashlib, json
		def descriptor(kind, name):
		    data = open(name, "rb").read()
		    return {"mediaType": kind, "digest": "sha256:" + hashlib.sha256(data).hexdigest(), "size": len(data)}
		print(json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		    "config": descriptor("application/vnd.wasm.config.v0+json", "wasm.json"), "layers": [descriptor("application/wasm", "module.wasm")]}))
	END
	oras manifest push --plain-http "$host/oras/wasm-bare:v1" "$work/wasm-manifest.json"
	# No file at all, only annotations.
	push --artifact-type application/vnd.example.empty.v1 "$host/oras/empty:v1"
	# An index of two, that no platform tells apart.
	push --artifact-type application/vnd.example.one.v1 --annotation which=one "$host/oras/index:one" hello.txt
	push --artifact-type application/vnd.example.two.v1 --annotation which=two "$host/oras/index:two" config.json
	oras manifest index create --plain-http --artifact-type application/vnd.example.both.v1 "$host/oras/index:v1" one two
	# And of two that platforms do.
	push --artifact-platform linux/amd64 "$host/oras/platforms:amd64" hello.txt
	push --artifact-platform linux/arm64 "$host/oras/platforms:arm64" config.json
	oras manifest index create --plain-http "$host/oras/platforms:v1" amd64 arm64
	oras attach --plain-http --artifact-type application/vnd.example.note.v1 --annotation "org.opencontainers.image.created=$epoch" \
		--distribution-spec v1.1-referrers-tag "$host/oras/typed:v1" sub/dir/deep.txt
}

push_orasPy() {
	cd "$source/files"
	python3 - "$host" <<-'END'
		import sys
		import oras.client
		client, host = oras.client.OrasClient(insecure=True), sys.argv[1]
		client.push(target=f"{host}/oras-py/files:v1", files=["./hello.txt", "sub/dir/deep.txt:text/plain"], disable_path_validation=True)
		client.push(target=f"{host}/oras-py/directory:v1", files=["tree"], disable_path_validation=True)
	END
}

push_modelpack() {
	cd "$source/model"
	model=application/vnd.cncf.model
	modelpack --insecure push --config ../model.json --layer model.safetensors --layer config.json:$model.weight.config.v1.raw \
		--layer README.md:$model.doc.v1.raw --layer tokenizer/vocab.json:$model.weight.config.v1.raw "$host/modelpack/raw:v1"
	modelpack --insecure push --config ../model.json --layer weights:$model.weight.v1.tar \
		--layer tokenizer:$model.weight.config.v1.tar+gzip --layer code:$model.code.v1.tar+zstd "$host/modelpack/tar:v1"
}

push_kitops() {
	export KITOPS_HOME="$work/home/kitops"
	mkdir -p "$work/kit"
	cp -r "$source/model/." "$work/kit"
	cat >"$work/kit/Kitfile" <<-'END'
		manifestVersion: "1.0"
		package: {name: tiny}
		model: {name: tiny, path: weights/model.safetensors}
		code: [{path: code}]
		docs: [{path: README.md}]
	END
	kit pack "$work/kit" --tag "$host/kitops/kit:v1"
	kit push --plain-http "$host/kitops/kit:v1"
}

push_helm() {
	rm -rf "$work/helm"
	mkdir "$work/helm"
	cd "$work/helm"
	helm create demo
	find demo/templates -mindepth 1 ! -name service.yaml ! -name _helpers.tpl -delete
	printf 'replicas: 1\nservice: {type: ClusterIP, port: 80}\n' >demo/values.yaml
	sed -i 's/^description:.*/description: A chart for tests/' demo/Chart.yaml
	sed -i '/^#/d; /^$/d' demo/Chart.yaml
	helm package demo --version 0.1.0
	helm push --plain-http demo-0.1.0.tgz "oci://$host/helm"
	# Tags cannot have a plus sign; helm writes an underscore.
	helm package demo --version 0.3.0+build.1
	helm push --plain-http demo-0.3.0+build.1.tgz "oci://$host/helm"
	if ! [ -f "$GNUPGHOME/helm.gpg" ]; then
		gpg --batch --quiet --passphrase '' --quick-generate-key 'Interop <interop@example.com>' rsa2048 sign never
		gpg --batch --quiet --export-secret-keys >"$GNUPGHOME/helm.gpg"
		gpg --batch --quiet --export >"$work/keys/helm.gpg"
		gpgconf --kill all
	fi
	helm package demo --version 0.2.0 --sign --key Interop --keyring "$GNUPGHOME/helm.gpg"
	helm push --plain-http demo-0.2.0.tgz "oci://$host/helm"
}

push_flux() {
	cd "$source"
	push() {
		flux push artifact --insecure-registry --reproducible --source https://git.example.com/demo.git \
			--revision main@sha1:0123456789012345678901234567890123456789 "$@"
	}
	push "oci://$host/flux/directory:v1" --path manifests
	push "oci://$host/flux/file:v1" --path manifests/base/configmap.yaml --annotations which=file
	# A layer that is no archive: the library's, which the command does not offer.
	flux-static "$host/flux/static:v1" manifests/base/configmap.yaml
	flux-static "$host/flux/static-yaml:v1" manifests/base/configmap.yaml yaml
}

push_buildah() {
	$buildah rmi --all --force >/dev/null 2>&1 || :
	# layer CONTAINER COMMAND: what the shell command does in its root, as one more layer.
	layer() {
		root=$($buildah mount "$1")
		(cd "$root" && sh -euc "$2")
		still "$root"
		$buildah umount "$1" >/dev/null
		$buildah commit --quiet --timestamp 0 --format oci "$1" "$3"
		$buildah rm "$1" >/dev/null
	}
	container=$($buildah from scratch)
	layer "$container" 'mkdir -p app/old etc; echo one >app/one.txt; echo two >app/two.txt; ln app/one.txt app/hard.txt
		ln -s two.txt app/soft.txt; echo gone >app/old/gone.txt; echo old >etc/old; printf "#!/bin/sh\n" >app/run; chmod 755 app/run' lower
	container=$($buildah from lower)
	layer "$container" 'rm -r app/old etc/old; echo three >app/three.txt; echo changed >app/two.txt' upper
	$buildah push --quiet --tls-verify=false upper "docker://$host/buildah/image:v1"
	# An image of its own: buildah would reuse the layers that it pushed compressed otherwise.
	container=$($buildah from scratch)
	layer "$container" 'echo zstd >zstd' zstd
	$buildah push --quiet --tls-verify=false --compression-format zstd zstd "docker://$host/buildah/zstd:v1"
	# An index, and Docker's list of OCI images.
	for arch in amd64 arm64; do
		container=$($buildah from --arch $arch scratch)
		layer "$container" "echo $arch >arch" $arch
	done
	$buildah manifest create both amd64 arm64
	$buildah manifest push --quiet --all --tls-verify=false --format oci both "docker://$host/buildah/index:v1"
	$buildah manifest push --quiet --all --tls-verify=false both "docker://$host/buildah/list:v1"
}

push_skopeo() {
	copy() { skopeo copy --quiet --src-tls-verify=false --dest-tls-verify=false "$@"; }
	copy --format v2s2 "docker://$host/buildah/image:v1" "docker://$host/skopeo/v2s2:v1"
	copy --all --format v2s2 "docker://$host/buildah/index:v1" "docker://$host/skopeo/list:v1"
}

push_cosign() {
	cd "$HOME"
	export COSIGN_PASSWORD=
	[ -f cosign.key ] || cosign generate-key-pair
	for form in legacy bundle; do
		copied "cosign/$form"
		image=$host/cosign/$form@$(digest "$host/cosign/$form:v1")
		new=true
		[ $form = bundle ] || new=false
		# Without a transparency log, and without asking anybody which there are.
		key="--key cosign.key --yes --allow-http-registry --tlog-upload=false --use-signing-config=false --new-bundle-format=$new"
		cosign sign $key "$image"
		cosign attest $key --type spdxjson --predicate "$source/sbom.spdx.json" "$image"
	done
	cosign attach sbom --allow-http-registry --type spdx --sbom "$source/sbom.spdx.json" "$host/cosign/legacy:v1"
	# What came between the two: the old forms as referrers.
	copied cosign/referrers
	image=$host/cosign/referrers@$(digest "$host/cosign/referrers:v1")
	export COSIGN_EXPERIMENTAL=1
	cosign sign --key cosign.key --yes --allow-http-registry --tlog-upload=false --use-signing-config=false \
		--new-bundle-format=false --registry-referrers-mode oci-1-1 "$image"
	cosign attach sbom --allow-http-registry --registry-referrers-mode oci-1-1 --type spdx --sbom "$source/sbom.spdx.json" "$image"
	cp cosign.pub "$work/keys/"
}

push_notation() {
	[ -d "$XDG_CONFIG_HOME/notation" ] || notation cert generate-test --default interop
	cp "$XDG_CONFIG_HOME/notation/localkeys/interop.crt" "$work/keys/notation.crt"
	copied notation/image
	notation sign --insecure-registry "$host/notation/image@$(digest "$host/notation/image:v1")"
}

push_tkn() {
	cd "$source"
	tkn bundle push "$host/tkn/bundle:v1" -f task.yaml -f pipeline.yaml
}

if [ $# -gt 2 ]; then
	"push_$3"
else
	sources
	each "$script" "$host" "$work"
fi
