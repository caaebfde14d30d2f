#!/bin/sh
# Real programs in front of, and in the place of, a registry: nginx with htpasswd, a registry with the referrers API, Dragonfly's dfdaemon.
# usage: mirrors.sh OCIVOL TOOLS_DIR
set -eu
# dfdaemon has seven ports: here they are nobody else's.
[ -n "${OCIVOL_MIRRORS:-}" ] || OCIVOL_MIRRORS=1 exec unshare --net --mount --propagation private sh "$0" "$@"
ip link set lo up
. "$(dirname "$0")/checks.sh"
noise "$work/weights" 30000000
artifact=application/vnd.example.weights

# An image of one file, and an artifact that another one refers to, for who knows alice's password.
backend=127.0.0.1:7001 private=127.0.0.1:7002
serve backend 7001 referrers-registry $backend
echo "alice:$(openssl passwd -apr1 wonderland)" >"$work/htpasswd"
nginx_with private 7002 "server {
	listen $private;
	auth_basic 'a realm';
	auth_basic_user_file $work/htpasswd;
	location / { proxy_pass http://$backend; }
}"
login() {
	printf '{"auths": {"%s": {"auth": "%s"}}}' $private "$(printf %s "$1" | base64)" >"$work/$2.json"
}
login alice:wonderland alice
login alice:wrong wrong
(
	cd "$work"
	umoci init --layout image && umoci new --image image:v1
	umoci insert --image image:v1 weights /weights
	skopeo copy --quiet --dest-tls-verify=false --dest-authfile alice.json oci:image:v1 docker://$private/team/image:v1
	echo "signed" >signature
	oras push --plain-http --registry-config alice.json $private/team/artifact:v1 weights:$artifact
	oras attach --plain-http --registry-config alice.json --artifact-type application/vnd.example.signature \
		--format go-template='{{.digest}}' $private/team/artifact:v1 signature >referrer
) >"$work/log/push" 2>&1 || { cat "$work/log/push"; exit 1; }

pulled_with_htpasswd() {
	for name in image artifact; do
		mounted $private team/$name:v1 weights "$work/weights" --plain-http $private --docker-config "$work/alice.json"
		fails mounted $private team/$name:v1 weights "$work/weights" --plain-http $private --docker-config "$work/wrong.json" 2>"$work/refused"
		grep 'did not accept the credentials of user "alice"' "$work/refused"
	done
}

# By the API, and not by the tag that registries without it have. The type is the registry's word, and this one has it from the config.
referrers_shown() {
	"$ocivol" inspect --output json --plain-http $private --docker-config "$work/alice.json" $private/team/artifact:v1 >"$work/inspected"
	[ "$(python3 -c 'import json, sys; print(*[it["digest"] for it in json.load(sys.stdin)["referrers"]])' <"$work/inspected")" = "$(cat "$work/referrer")" ]
	grep '^200 GET /v2/team/artifact/referrers/sha256:.*"ocivol' "$work/private.asked"
	fails grep 'GET /v2/team/artifact/manifests/sha256-.*"ocivol' "$work/private.asked"
}

# docker-registry, and nginx before it, which says who asks for what.
origin=127.0.0.1:7003
registry registry 7004
nginx_with origin 7003 "server {
	listen $origin;
	location / { proxy_pass http://127.0.0.1:7004; }
}"
(cd "$work" && oras push --plain-http $origin/team/artifact:v1 weights:$artifact) >"$work/log/push-origin" 2>&1
serve scheduler 8002 python3 "$here/scheduler.py" 127.0.0.1:8002
cat >"$work/dfdaemon.yaml" <<-YAML
	host: {ip: 127.0.0.1, hostname: node-1}
	server: {pluginDir: $work/dragonfly/plugins, cacheDir: $work/dragonfly/cache}
	storage: {dir: $work/dragonfly/storage}
	download: {server: {socketPath: $work/dragonfly/socket}}
	proxy:
	  server: {ip: 127.0.0.1, port: 4001}
	  registryMirror: {addr: "http://$origin"}
	  rules:
	  - regex: blobs/sha256.*
	YAML
echo '{scheduler: {addrs: ["127.0.0.1:8002"]}}' >"$work/dynconfig.yaml"
serve dfdaemon 4001 dfdaemon --config "$work/dfdaemon.yaml" --dynconfig "$work/dynconfig.yaml" --log-dir "$work/dragonfly/log" --console
mkdir -p "$work/hosts/127.0.0.1_7003_"
cat >"$work/hosts/127.0.0.1_7003_/hosts.toml" <<-TOML
	[host."http://127.0.0.1:4001"]
	  capabilities = ["pull", "resolve"]
	  [host."http://127.0.0.1:4001".header]
	    X-Dragonfly-Registry = "http://$origin"
	TOML

# The first pull fills dfdaemon, the second takes from it. The registry says who may read, and sends ocivol no blob.
dfdaemon_serves() {
	: >"$work/origin.asked"
	mounted $origin team/artifact:v1 weights "$work/weights" --plain-http $origin
	grep 'GET /v2/team/artifact/blobs/' "$work/origin.asked"
	: >"$work/origin.asked"
	mounted $origin team/artifact:v1 weights "$work/weights" --plain-http $origin
	cat "$work/origin.asked"
	grep 'HEAD /v2/team/artifact/blobs/[^?]* .*"ocivol' "$work/origin.asked"
	fails grep 'GET /v2/team/artifact/blobs/' "$work/origin.asked"
}

# Its operator says that it is as good as the registry, which ocivol does not ask then.
dfdaemon_alone() {
	: >"$work/origin.asked"
	mounted $origin team/artifact:v1 weights "$work/weights" --authoritative-mirrors 127.0.0.1:4001
	cat "$work/origin.asked"
	# dfdaemon passes requests for manifests on, under the name of who asks it; they say "ns=".
	grep '/manifests/v1?ns=' "$work/origin.asked"
	fails grep -v '?ns=' "$work/origin.asked"
}

check nginx-htpasswd pulled_with_htpasswd
check referrers-api referrers_shown
check dragonfly dfdaemon_serves
check dragonfly-authoritative dfdaemon_alone
[ "$lost" = 0 ]
