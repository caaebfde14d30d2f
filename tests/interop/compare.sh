#!/bin/sh
# Whether two directories hold the same: content, and what FACTS says of each file, as find prints it.
# usage: compare.sh EXPECTED FOUND FACTS
set -eu
diff -r --no-dereference "$1" "$2"
list() { find "$1" -mindepth 1 -printf "$2\n" | sort; }
list "$1" "$3" >"$1.facts"
list "$2" "$3" | diff "$1.facts" -
