#!/bin/sh
# Blobs behind nginx: as a store that the registry redirects to with signed URLs, and that sends each connection only so many bytes a second.
# usage: throttle.sh OCIVOL TOOLS_DIR
set -eu
. "$(dirname "$0")/checks.sh"
size=100000000 rate=4000000
noise "$work/weights" $size

origin=$(port) store=$(port) signer=$(port) front=$(port) slow=$(port)
registry registry "$origin"
(cd "$work" && oras push --no-tty --plain-http "127.0.0.1:$origin/models/large:v1" weights:application/vnd.example.weights >/dev/null)
# A URL is good for two seconds, and for one blob: https://nginx.org/en/docs/http/ngx_http_secure_link_module.html
serve signer "$signer" python3 "$here/signer.py" "$signer" "http://127.0.0.1:$store" 2
nginx_store() {
	nginx_with store "$store" "server {
		listen 127.0.0.1:$store;
		location / {
			root $work/registry;
			limit_rate $rate;
			secure_link \$arg_md5,\$arg_expires;
			secure_link_md5 '\$secure_link_expires\$uri interop';
			if (\$secure_link = '') { return 403; }
			if (\$secure_link = 0) { return 410; }
		}
	}"
}
nginx_store
stored=$pid
nginx_with front "$front" "server {
	listen 127.0.0.1:$front;
	location / { proxy_pass http://127.0.0.1:$origin; }
	location ~ ^/v2/.*/blobs/ { proxy_pass http://127.0.0.1:$signer; }
}
server {
	listen 127.0.0.1:$slow;
	location / { proxy_pass http://127.0.0.1:$origin; limit_rate $rate; proxy_max_temp_file_size 0; }
}"

# answers PATTERN: how many of the store's answers match.
answers() {
	grep -c "$1" "$work/store.asked" || :
}

# Every third URL is refused, and in the middle of the blob the store ends and comes again: what is missing then is asked for with new URLs.
signed_urls() {
	mounted "127.0.0.1:$front" models/large:v1 weights "$work/weights" --plain-http "127.0.0.1:$front" &
	mount=$!
	until [ "$(du -sm "$work/store" 2>/dev/null | cut -f 1)" -gt 20 ] 2>/dev/null; do
		kill -0 $mount
		sleep 0.1
	done
	end "$stored"
	nginx_store
	wait $mount
	end "$pid"
	[ "$(answers '^410 GET')" -gt 0 ]
	[ "$(answers '^403 GET')" = 0 ]
	[ -z "$(sed 's/.*number=\([0-9]*\).*/\1/' "$work/store.asked" | sort | uniq -d)" ]
	# nginx tells of a request when it ends, and so of none that it did not end itself.
	sent=$(awk '{ sum += $5 } END { print sum }' "$work/store.asked")
	echo "$(answers 'GET') URLs, $(answers '^410 GET') had expired; of $size bytes $sent came after the restart" >"$work/note"
	[ "$sent" -lt $((size - 20000000)) ]
}

# Times differ from machine to machine; half of what one connection would take is a bound that only a second connection meets.
throttled() {
	began=$(date +%s%N)
	mounted "127.0.0.1:$slow" models/large:v1 weights "$work/weights" --plain-http "127.0.0.1:$slow"
	took=$((($(date +%s%N) - began) / 1000000))
	alone=$((size * 1000 / rate))
	echo "$took ms; one connection alone takes $alone ms, $(awk "BEGIN { printf \"%.1f\", $alone / $took }") times as long" >"$work/note"
	[ $took -lt $((alone / 2)) ]
}

check nginx-signed-urls signed_urls
check nginx-limit-rate throttled
[ "$lost" = 0 ]
