# Read by push.sh and pull.sh, which define a function for each of these tools: its name, a colon, the commands it needs.
# The order matters: skopeo, cosign and notation copy the image that buildah made.
tools="oras:oras,python3 orasPy:python3,oras modelpack:modelpack kitops:kit helm:helm,gpg flux:flux,flux-static
	buildah:buildah,skopeo,umoci skopeo:skopeo,umoci cosign:cosign,skopeo notation:notation,skopeo tkn:tkn,skopeo,umoci"

# each SCRIPT HOST WORKDIR: runs the script again for each tool, because set -e does not hold in a function whose result is looked at.
each() {
	lost=0
	mkdir -p "$3/log"
	for entry in $tools; do
		tool=${entry%%:*} missing=
		for command in $(echo "${entry#*:}" | tr , ' '); do
			command -v "$command" >/dev/null || missing="$missing $command"
		done
		if [ -n "$missing" ]; then
			echo "$tool: not installed:$missing"
			lost=$((lost + 1))
		elif ! sh "$1" "$2" "$3" "$tool" >"$3/log/$tool" 2>&1; then
			echo "$tool: failed:"
			lost=$((lost + 1))
			tail -n 5 "$3/log/$tool"
		else
			echo "$tool: ok"
		fi
	done
	[ "$lost" = 0 ]
}
