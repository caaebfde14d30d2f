#!/bin/sh
# Amazon's ecr-credential-provider, run by the plugin as kubelet runs it; the cloud's API and the registry are on this machine.
# usage: providers.sh OCIVOL TOOLS_DIR
set -eu
# Whatever is mounted goes with the namespace.
[ -n "${OCIVOL_PROVIDERS:-}" ] || OCIVOL_PROVIDERS=1 exec unshare --mount --propagation private sh "$0" "$@"
. "$(dirname "$0")/checks.sh"
ecr=111122223333.dkr.ecr.eu-central-1.amazonaws.com
noise "$work/weights" 1000000

# The password is "wonderland".
echo 'AWS:$2b$05$r55D3P2KXKbooEGo2CnxM.5/i9DC9gz7KOr1BYW39TpMO7Jr7lFtm' >"$work/htpasswd"
origin=$(port)
registry registry "$origin" "auth: {htpasswd: {realm: ecr, path: $work/htpasswd}}"
(cd "$work" && oras push --plain-http --username AWS --password wonderland "127.0.0.1:$origin/team/model:v1" \
	weights:application/vnd.example.weights) >"$work/log/push" 2>&1
mkdir -p "$work/hosts/$ecr" "$work/bin" "$work/kubelet"
echo "server = \"http://127.0.0.1:$origin\"" >"$work/hosts/$ecr/hosts.toml"
cp "$tools/ecr-credential-provider" "$work/bin"

# published PASSWORD KEY [OPTION…]: a plugin publishes the model; the cloud gives this password to who has the key "interop".
published() {
	password=$1 key=$2
	shift 2
	api=$(port)
	serve api "$api" python3 "$here/ecr.py" "$api" "$password"
	cat >"$work/providers.yaml" <<-YAML
		apiVersion: kubelet.config.k8s.io/v1
		kind: CredentialProviderConfig
		providers:
		- name: ecr-credential-provider
		  apiVersion: credentialprovider.kubelet.k8s.io/v1
		  matchImages: ["*.dkr.ecr.*.amazonaws.com"]
		  defaultCacheDuration: 12h
		  env:
		  - {name: AWS_ENDPOINT_URL_ECR, value: "http://127.0.0.1:$api"}
		  - {name: AWS_ACCESS_KEY_ID, value: "$key"}
		  - {name: AWS_SECRET_ACCESS_KEY, value: secret}
	YAML
	rm -rf "$work/store" "$work/plugin"
	mkdir "$work/plugin"
	# On whatever disk this runs, and however full that is.
	"$ocivol" node --keep-free 1% --keep-free-inodes 1% --root "$work/store" --endpoint "unix://$work/plugin/csi.sock" --node-id node-1 --registration-dir "" --health-addr "" \
		--kubelet-dir "$work/kubelet" --target-root "$work/plugin" --hosts-dir "$work/hosts" "$@" >>"$work/plugin.log" 2>&1 &
	plugin=$!
	echo $plugin >>"$work/started"
	until [ -S "$work/plugin/csi.sock" ]; do kill -0 $plugin || { tail -n 5 "$work/plugin.log"; return 1; }; done
	status=0
	python3 "$here/csi.py" "$work/plugin/csi.sock" publish "$work/plugin/target" "$ecr/team/model:v1" 2>"$work/refused" || status=1
	cat "$work/refused"
	if [ $status = 0 ]; then
		cmp "$work/weights" "$work/plugin/target/weights" || status=1
		python3 "$here/csi.py" "$work/plugin/csi.sock" unpublish "$work/plugin/target"
	fi
	end $plugin
	end "$pid"
	return $status
}
with_provider() {
	published "$@" --image-credential-provider-config "$work/providers.yaml" --image-credential-provider-bin-dir "$work/bin"
}

right_password() {
	with_provider wonderland interop
	grep GetAuthorizationToken "$work/api.log"
}
wrong_password() {
	fails with_provider wrong interop
	grep 'did not accept the credentials of user "AWS"' "$work/refused"
}
wrong_key() {
	fails with_provider wonderland another
	grep '^UNAUTHENTICATED: .*credential provider "ecr-credential-provider"' "$work/refused"
}
no_provider() {
	fails published wonderland interop
	grep '^UNAUTHENTICATED: ' "$work/refused"
}

check ecr-credential-provider right_password
check ecr-credential-provider-wrong-password wrong_password
check ecr-credential-provider-no-access wrong_key
check ecr-without-provider no_provider
[ "$lost" = 0 ]
