# Read by mirrors.sh, providers.sh and throttle.sh, which are called with: OCIVOL TOOLS_DIR
ocivol=$(realpath "$1") tools=$(realpath "$2")
here=$(dirname "$(realpath "$0")")
PATH=$tools/python/bin:$tools:$PATH
export PATH
unset DOCKER_CONFIG
work=$(mktemp -d)
mkdir "$work/log"
lost=0
# A file, because checks run in shells of their own.
: >"$work/started"
trap 'for pid in $(cat "$work/started"); do kill "$pid" && wait "$pid" || :; done 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# port: one of this machine that nobody listens on.
port() {
	python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# serve NAME PORT COMMAND…: starts it, and waits until it listens. Its output is the file NAME.log.
serve() {
	name=$1 where=$2
	shift 2
	"$@" >>"$work/$name.log" 2>&1 &
	pid=$!
	echo "$pid" >>"$work/started"
	for _ in $(seq 200); do
		! python3 -c "import socket; socket.create_connection(('127.0.0.1', $where)).close()" 2>/dev/null || return 0
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.1
	done
	echo "$name does not listen:"
	tail -n 5 "$work/$name.log"
	exit 1
}

# end PID: stops what was started.
end() {
	kill "$1" && wait "$1" || :
	sed -i "/^$1\$/d" "$work/started"
}

# registry NAME PORT [YAML]: Debian's docker-registry, with its files in NAME.
registry() {
	cat >"$work/$1.yml" <<-YAML
		version: 0.1
		log: {level: error, accesslog: {disabled: true}}
		storage: {filesystem: {rootdirectory: $work/$1}}
		http: {addr: "127.0.0.1:$2", secret: interop}
		${3:-}
	YAML
	serve "$1" "$2" docker-registry serve "$work/$1.yml"
}

# nginx_with NAME PORT SERVERS: Debian's nginx in one process; what it is asked is in NAME.asked, a line each: status, method, URI, host, bytes, client.
nginx_with() {
	mkdir -p "$work/$1.tmp"
	cat >"$work/$1.conf" <<-CONF
		daemon off;
		master_process off;
		user root;
		pid $work/$1.pid;
		error_log stderr warn;
		events {}
		http {
			log_format asked '\$status \$request_method \$request_uri \$http_host \$body_bytes_sent "\$http_user_agent"';
			access_log $work/$1.asked asked;
			client_body_temp_path $work/$1.tmp/body;
			proxy_temp_path $work/$1.tmp/proxy;
			fastcgi_temp_path $work/$1.tmp/fastcgi;
			scgi_temp_path $work/$1.tmp/scgi;
			uwsgi_temp_path $work/$1.tmp/uwsgi;
			client_max_body_size 0;
			proxy_set_header Host \$http_host;
			$3
		}
	CONF
	serve "$1" "$2" nginx -c "$work/$1.conf" -e stderr
}

# noise FILE BYTES: the same bytes at each run, which nothing compresses.
noise() {
	python3 -c 'import random, sys; open(sys.argv[1], "wb").write(random.Random(1).randbytes(int(sys.argv[2])))' "$1" "$2"
}

# mounted HOST REFERENCE FILE_IN_VOLUME FILE [OPTION…]: pulls into a new store; the volume's file is the same as FILE.
mounted() {
	host=$1 reference=$2 inside=$3 expected=$4
	shift 4
	rm -rf "$work/store"
	"$ocivol" mount --root "$work/store" --hosts-dir "$work/hosts" "$@" "$host/$reference" "$work/mounted" -- \
		cmp "$expected" "$work/mounted/$inside"
}

# fails COMMAND…: because -e does not end a script at "! command".
fails() {
	if "$@"; then
		echo "this should fail: $*"
		return 1
	fi
}

# check NAME COMMAND…: says NAME: ok, and what the command wrote to the file "note"; or how it failed. -e holds in functions, too.
check() {
	name=$1
	shift
	rm -f "$work/note"
	set +e
	(set -eu; "$@") >"$work/log/$name" 2>&1
	status=$?
	set -e
	if [ "$status" = 0 ]; then
		echo "$name: ok$([ ! -f "$work/note" ] || sed '1s/^/: /' "$work/note")"
	else
		echo "$name: failed:"
		sed "s|$work/||g; s/^/    /" "$work/log/$name" | tail -n 8
		lost=1
	fi
}
