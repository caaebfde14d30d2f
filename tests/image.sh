#!/bin/sh
# Runs the binary out of the container image: it has no file but its own and the certificate authorities of BUNDLE.
# usage: image.sh OCI_ARCHIVE BUNDLE
set -eu
archive=$(realpath "$1")
bundle=$(realpath "$2")
directory=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$directory"' EXIT
fail() { echo "$1" >&2; exit 1; }

skopeo copy --quiet "oci-archive:$archive" "oci:$directory/layout:it"
umoci raw unpack --image "$directory/layout:it" "$directory/rootfs" >/dev/null
entrypoint=$(skopeo inspect --config "oci:$directory/layout:it" | python3 -c 'import json, sys; print(json.load(sys.stdin)["config"]["Entrypoint"][0])')
cd "$directory/rootfs"
[ "$(find . -type f | sort | tr '\n' ' ')" = "./etc/ssl/certs/ca-certificates.crt ./ocivol " ] || fail "the image has other files"

# Exactly Mozilla's authorities. The machine that builds may trust others, and they must not get in.
cmp etc/ssl/certs/ca-certificates.crt "$bundle" || fail "the image trusts other authorities than those of $bundle"
authorities=$(grep -c 'BEGIN CERTIFICATE' "$bundle")
[ "$authorities" -gt 100 ] || fail "$bundle has only $authorities certificates"

chroot . "$entrypoint" --version
# It can make a client for registries, which needs certificates, and it says what is wrong with this one.
chroot=$(command -v chroot)
inspect() { env -i "$@" "$chroot" . "$entrypoint" inspect "127.0.0.1:$port/x:v1" 2>&1 || true; }
# $1: what the last answer has to say, $2: what it would mean if it did not.
expect() { echo "$answer" | grep -q "$1" || fail "$2: $answer"; }
port=1
answer=$(inspect)
expect "cannot reach 127.0.0.1:1" "no client can be made"

# A registry with a certificate of an authority that nobody knows; it has nothing, and says so.
(
	cd "$directory"
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=an authority" \
		-addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.crt
	openssl req -x509 -CA ca.crt -CAkey ca.key -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
		-subj /CN=registry -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE \
		-keyout server.key -out server.crt
) 2>"$directory/openssl.log" || fail "openssl made no certificates: $(cat "$directory/openssl.log")"
python3 - "$directory" <<'PYTHON' 2>/dev/null &
import http.server, os, ssl, sys

class Nothing(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)

    do_HEAD = do_GET


directory = sys.argv[1]
server = http.server.HTTPServer(("127.0.0.1", 0), Nothing)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{directory}/server.crt", f"{directory}/server.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.handle_error = lambda *_: None  # It goes on after a client that does not like its certificate.
with open(f"{directory}/port.new", "w") as file:
    file.write(str(server.server_port))
os.rename(f"{directory}/port.new", f"{directory}/port")
server.serve_forever()
PYTHON
server=$!
until [ -e "$directory/port" ]; do
	kill -0 "$server" || fail "the registry does not start"
	sleep 0.1
done
port=$(cat "$directory/port")

answer=$(inspect)
expect "invalid peer certificate" "a certificate of an unknown authority was accepted"
# As the chart's registry.caConfigMap does it.
cp "$directory/ca.crt" ca.crt
answer=$(inspect SSL_CERT_FILE=/ca.crt)
expect "does not exist" "SSL_CERT_FILE does not replace the image's authorities"
# The file in the image is what is read, and nothing is compiled in.
cp "$directory/ca.crt" etc/ssl/certs/ca-certificates.crt
answer=$(inspect)
expect "does not exist" "the file with the authorities is not read"
echo "the image's binary runs, and trusts Mozilla's $authorities authorities"
