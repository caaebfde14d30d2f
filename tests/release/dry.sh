#!/bin/sh
# A release with everything that belongs to it, into a registry of this machine, with a key that is made for it. Then the users' side:
# what was pushed is verified, run, mounted and compared. Each check prints a line; the last status says whether all of them hold.
# usage: dry.sh TOOLS_DIR TARGET_DIR AUTHORITIES REGISTRY OUT
# TOOLS_DIR is what release/install.sh made, TARGET_DIR has the binaries that release/binaries.sh made. If nothing listens at REGISTRY, a
# docker-registry is started there, and ended.
set -eu
checkout=$(realpath "$(dirname "$0")/../..")
tools=$(realpath "$1")
target=$(realpath "$2")
authorities=$(realpath "$3")
registry=$4
mkdir -p "$5"
out=$(realpath "$5")
work=$(mktemp -d)
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
servers=
trap '[ -z "$servers" ] || { kill $servers && wait $servers || :; } 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
cd "$checkout"
PATH=$tools:$(realpath "$tools/../bin"):$PATH
# Settings, credentials and caches of this user have no part in it.
CARGO_HOME=${CARGO_HOME:-$HOME/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup} HOME=$work
export PATH CARGO_HOME RUSTUP_HOME HOME

# listens HOST:PORT
listens() { python3 -c 'import socket, sys; host, port = sys.argv[1].rsplit(":", 1); socket.create_connection((host, int(port)))' "$1" 2>/dev/null; }
# serve HOST:PORT [MORE]: a registry, with more of its configuration.
serve() {
	printf '%s\n' "version: 0.1" "log: {level: error, accesslog: {disabled: true}}" "storage: {filesystem: {rootdirectory: $work/registry-$1}}" \
		"http: {addr: '$1', secret: dry}" "${2-}" >"$work/registry-$1.yml"
	docker-registry serve "$work/registry-$1.yml" >"$work/registry-$1.log" 2>&1 &
	servers="$servers $!"
	until listens "$1"; do
		kill -0 $! || { cat "$work/registry-$1.log"; exit 1; }
		sleep 0.1
	done
}
listens "$registry" || serve "$registry"

failed=0
# check WHAT FUNCTION: says ok, or FAILED and why.
check() {
	# Not as a condition: within one the first command that fails would not end it.
	set +e
	(set -e; "$2") >"$work/said" 2>&1
	status=$?
	set -e
	if [ "$status" = 0 ]; then
		echo "ok      $1$(sed -n '$s/^/: /p' "$work/said")"
	else
		echo "FAILED  $1"
		sed 's/^/        /' "$work/said" | tail -n 20 | cut -c 1-300
		failed=1
	fi
}
# fails COMMAND…: for what has to be refused.
fails() { if "$@" >"$work/refused" 2>&1; then echo "this should fail: $*"; return 1; fi; }

version=$(sed -n 's/^version: //p' charts/ocivol/Chart.yaml)
image=$registry/ocivol/ocivol:$version
chart=$registry/ocivol/charts/ocivol:$version
cp "$target/x86_64-unknown-linux-musl/release/ocivol" "$work/ocivol"
local_flags="--root $work/store --plain-http $registry"

sh release/assemble.sh "$tools" "$target" "$authorities" "$registry" "$out/files"
export COSIGN_PASSWORD=dry
(cd "$work" && cosign generate-key-pair >/dev/null 2>&1 && cosign generate-key-pair --output-key-prefix other >/dev/null 2>&1)
REPLACE=1 sh release/publish.sh "$tools" "$out/files" "$registry" "$work/cosign.key"
cp "$work/cosign.pub" "$out/files"
digest=$(oras resolve --plain-http "$image")

made_again_all_is_the_same() {
	sh release/assemble.sh "$tools" "$target" "$authorities" "$registry" "$out/again"
	diff "$out/files/SHA256SUMS" "$out/again/SHA256SUMS"
	[ "$(oras resolve --oci-layout "$out/again/image:$version")" = "$digest" ]
	rm -r "$out/again"
	echo "$digest"
}
no_path_of_this_machine_and_no_time_is_in_the_binaries() {
	for triple in x86_64 aarch64; do
		# The second is what C's __DATE__ looks like.
		if grep -aoE "($CARGO_HOME|$checkout)/[ -~]*|[A-Z][a-z]{2} [ 0-3][0-9] 20[0-9]{2}" "$target/$triple-unknown-linux-musl/release/ocivol"; then
			return 1
		fi
	done
}
the_index_has_both_architectures() {
	oras manifest fetch --plain-http "$image" | python3 -c '
import json, sys
index = json.load(sys.stdin)
platforms = [child["platform"]["os"] + "/" + child["platform"]["architecture"] for child in index["manifests"]]
assert platforms == ["linux/amd64", "linux/arm64"], platforms
print(*platforms)'
}
the_image_of_this_machine_runs() {
	skopeo copy --quiet --src-tls-verify=false "docker://$image" "oci-archive:$work/image.tar:ocivol"
	$sudo sh tests/image.sh "$work/image.tar" "$authorities"
}
# The program of this machine takes the other one out of its image, which then fetches that image itself, as an archive: the emulator
# lacks openat2, by which ocivol unpacks.
the_image_for_arm_runs_emulated() {
	"$work/ocivol" export $local_flags --platform linux/arm64 "$image" "$work/arm"
	cmp "$work/arm/ocivol" "$target/aarch64-unknown-linux-musl/release/ocivol"
	on_arm() { qemu-aarch64-static "$work/arm/ocivol" "$@"; }
	[ "$(on_arm --version)" = "ocivol $version" ]
	on_arm save --root "$work/store-of-arm" --plain-http "$registry" "$image" "$work/emulated.tar"
	"$work/ocivol" export --root "$work/store-of-arm" --platform linux/arm64 "oci-layout:$work/emulated.tar" "$work/emulated"
	diff -r "$work/arm" "$work/emulated"
	on_arm --version
}
what_helm_test_mounts_can_be_read() {
	"$work/ocivol" mount $local_flags --layout oci-layout "$image@$digest" "$work/mounted" -- \
		"$work/ocivol" inspect oci-layout:"$work/mounted" | grep -E '^(digest|reference)'
}
inspect_shows_the_bill_of_materials() {
	"$work/ocivol" inspect --plain-http "$registry" "$image" | grep -E '^referrer .*application/vnd.cyclonedx\+json'
}
the_bill_of_materials_names_what_is_linked() {
	reference=$(oras discover --plain-http --artifact-type application/vnd.cyclonedx+json \
		--format go-template='{{(index .referrers 0).reference}}' "$image")
	oras pull --plain-http --no-tty --output "$work/sbom" "$reference" >/dev/null
	for architecture in amd64 arm64; do
		cmp "$work/sbom/ocivol-$version-linux-$architecture.cdx.json" "$out/files/ocivol-$version-linux-$architecture.cdx.json"
		python3 - "$work/sbom/ocivol-$version-linux-$architecture.cdx.json" <<-'PYTHON'
			import json, sys
			bill = json.load(open(sys.argv[1]))
			names = {component["name"] for component in bill["components"]}
			assert {"tokio", "aws-lc-sys", "zstd-sys", "rustls"} <= names, names
			assert not {"windows-sys", "proptest"} & names, "what is not linked is there"
			assert all(component.get("purl") and component.get("version") for component in bill["components"])
			print(len(names), "crates")
		PYTHON
	done
}
verified() { cosign verify --allow-http-registry --insecure-ignore-tlog=true --key "$work/$1.pub" "$2"; }
index_images_and_chart_are_signed() {
	verified cosign "$image"
	verified cosign "$chart"
	children=$(oras manifest fetch --plain-http "$image" | python3 -c 'import json, sys; [print(it["digest"]) for it in json.load(sys.stdin)["manifests"]]')
	[ "$(echo "$children" | wc -w)" = 2 ]
	for child in $children; do
		verified cosign "${image%:*}@$child"
	done
	echo "index, 2 images, chart"
}
another_image_and_another_key_are_refused() {
	oras cp --no-tty --from-oci-layout --to-plain-http "$out/files/image:$version" "$registry/ocivol/other:$version" >/dev/null
	fails verified cosign "$registry/ocivol/other:$version"
	grep -q 'no signatures found' "$work/refused"
	oras manifest fetch --plain-http "$image" | sed 's/amd64/amd65/' >"$work/index.json"
	oras manifest push --plain-http "$image-changed" "$work/index.json" >/dev/null
	fails verified cosign "$image-changed"
	fails verified other "$image"
	fails verified other "$chart"
	echo "an image without a signature, a changed index, another key"
}
changed_files_are_refused() {
	cp -r "$out/files" "$work/files"
	cd "$work/files"
	blob() { cosign verify-blob --insecure-ignore-tlog=true --key cosign.pub --bundle SHA256SUMS.sigstore.json SHA256SUMS; }
	blob
	sha256sum --quiet --check SHA256SUMS
	echo >>"ocivol-$version-linux-arm64.tar.gz"
	fails sha256sum --quiet --check SHA256SUMS
	sha256sum "ocivol-$version-linux-arm64.tar.gz" >>SHA256SUMS
	fails blob
	echo "both by their sums and by the signature"
}
the_archive_has_binary_completions_and_manual() {
	for architecture in amd64 arm64; do
		tar -xzf "$out/files/ocivol-$version-linux-$architecture.tar.gz" -C "$work"
		cd "$work/ocivol-$version-linux-$architecture"
		[ -x ocivol ]
		for file in LICENSE man/ocivol.1 man/ocivol-pull.1 completions/ocivol.bash completions/ocivol.zsh completions/ocivol.fish; do
			[ -s "$file" ] || { echo "no $file"; return 1; }
		done
	done
	"$work/ocivol-$version-linux-amd64/ocivol" --version
}
ocivol_mounts_the_chart() {
	mkdir "$work/packaged"
	tar -xzf "$out/files/ocivol-$version.tgz" -C "$work/packaged"
	"$work/ocivol" mount $local_flags "$chart" "$work/mounted" -- diff -r "$work/packaged" "$work/mounted"
	"$work/ocivol" mount $local_flags "$chart" "$work/mounted" -- helm template ocivol "$work/mounted/ocivol" >"$work/from-mount"
	helm template ocivol --plain-http "oci://${chart%:*}" --version "$version" >"$work/from-registry" 2>/dev/null
	cmp "$work/from-mount" "$work/from-registry"
	find "$work/packaged" -type f | wc -l | sed 's/$/ files/'
}
# image_is WORDS HELM ARGUMENTS…: of all that the chart starts.
image_is() {
	words=$1
	shift
	"$@" >"$work/rendered" 2>/dev/null
	[ "$(sed -n 's/^ *image: "\(.*\)"/\1/p' "$work/rendered" | sort -u)" = "$words" ] || { grep 'image: ' "$work/rendered"; return 1; }
}
both_helms_start_the_image_that_was_pushed() {
	for helm in helm "$tools/../helm4/helm"; do
		image_is "${image%:*}@$digest" "$helm" template ocivol --plain-http "oci://${chart%:*}" --version "$version"
		# Who chooses another gets that one.
		image_is "${image%:*}:other" "$helm" template ocivol --plain-http "oci://${chart%:*}" --version "$version" --set image.tag=other
	done
	[ "$(sed -n 's/^ *image: "\(.*\)"/\1/p' "$out/files/install.yaml" | sort -u)" = "${image%:*}@$digest" ]
	echo "${image%:*}@$digest"
}
artifact_hub_finds_its_metadata() {
	oras manifest fetch --plain-http "${chart%:*}:artifacthub.io" | grep -q '"application/vnd.cncf.artifacthub.config.v1+yaml"'
	oras pull --plain-http --no-tty --output "$work/hub" "${chart%:*}:artifacthub.io" >/dev/null
	cmp "$work/hub/artifacthub-repo.yml" charts/artifacthub-repo.yml
	oras manifest fetch --plain-http "$chart" | python3 -c '
import json, sys
said = json.load(sys.stdin)["annotations"]["artifacthub.io/images"]
assert "@sha256:" in said and "linux/arm64" in said, said'
}
what_the_document_shows_is_so() {
	cd "$out/files"
	python3 "$checkout/tests/release/typed.py" "$checkout/docs/releasing.md" "Verify a release" '
		cosign() {
			if [ "$1" = verify ]; then set -- "$@" --allow-http-registry; fi
			command cosign "$@" --insecure-ignore-tlog=true
		}
		ocivol() { "'"$work/ocivol"'" "$@" --plain-http "'"$registry"'"; }
		oras() { command oras "$@" --plain-http; }
		helm() { command helm "$@" --plain-http; }' "ghcr.io=$registry" "0.1.0=$version"
}
what_docker_login_writes_is_enough_to_publish() {
	private=127.0.0.1:$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
	# alice:wonderland
	echo 'alice:$2b$05$r55D3P2KXKbooEGo2CnxM.5/i9DC9gz7KOr1BYW39TpMO7Jr7lFtm' >"$work/htpasswd"
	serve "$private" "auth: {htpasswd: {realm: dry, path: $work/htpasswd}}"
	trap 'kill $!' EXIT
	fails sh release/publish.sh "$tools" "$out/files" "$private" "$work/cosign.key"
	mkdir "$HOME/.docker"
	echo '{"auths": {"'"$private"'": {"auth": "'"$(printf alice:wonderland | base64)"'"}}}' >"$HOME/.docker/config.json"
	cp -r "$out/files" "$work/published-with-login"
	sh release/publish.sh "$tools" "$work/published-with-login" "$private" "$work/cosign.key"
	verified cosign "$private/ocivol/ocivol:$version"
	verified cosign "$private/ocivol/charts/ocivol:$version"
	echo "and without it nothing is"

	# What is released is not replaced: said again nothing changes, and other bytes are refused.
	was=$(oras resolve --plain-http "$private/ocivol/ocivol:$version")
	sh release/publish.sh "$tools" "$work/published-with-login" "$private" "$work/cosign.key"
	[ "$(oras resolve --plain-http "$private/ocivol/ocivol:$version")" = "$was" ]
	oras tag --plain-http "$private/ocivol/ocivol:$version" kept >/dev/null
	oras manifest fetch --plain-http "$private/ocivol/ocivol:$version" | sed 's/"ocivol"/"other"/' >"$work/released.json"
	oras manifest push --plain-http "$private/ocivol/ocivol:$version" "$work/released.json" >/dev/null
	fails sh release/publish.sh "$tools" "$work/published-with-login" "$private" "$work/cosign.key"
	grep -q 'raise the version' "$work/refused"
	echo "what is released is not replaced"
}
what_is_not_ready_is_not_released() {
	git clone --quiet --no-hardlinks "$checkout" "$work/clone"
	cd "$work/clone"
	git config user.email dry@example.com && git config user.name dry
	sed -i "s/^## Unreleased/## $version/" CHANGELOG.md
	git commit --quiet --allow-empty -am "Release $version"
	fails sh "$checkout/release/ready.sh" .
	grep -q "no tag v$version" "$work/refused"
	# The commit may be one that has it.
	git tag --force "v$version"
	touch cosign.key
	sh "$checkout/release/ready.sh" .
	sed -i "s/^## $version/## Unreleased/" CHANGELOG.md
	fails sh "$checkout/release/ready.sh" .
	grep 'not committed' "$work/refused"
	grep 'no heading' "$work/refused"
}

for name in made_again_all_is_the_same no_path_of_this_machine_and_no_time_is_in_the_binaries the_index_has_both_architectures \
	the_image_of_this_machine_runs the_image_for_arm_runs_emulated what_helm_test_mounts_can_be_read inspect_shows_the_bill_of_materials \
	the_bill_of_materials_names_what_is_linked index_images_and_chart_are_signed another_image_and_another_key_are_refused \
	changed_files_are_refused the_archive_has_binary_completions_and_manual ocivol_mounts_the_chart \
	both_helms_start_the_image_that_was_pushed artifact_hub_finds_its_metadata what_the_document_shows_is_so \
	what_docker_login_writes_is_enough_to_publish what_is_not_ready_is_not_released; do
	check "$(echo "$name" | tr _ ' ')" "$name"
done
[ "$failed" = 0 ] && echo "released $version to $registry; its files are in $5/files"
exit "$failed"
