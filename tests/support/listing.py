"""Lists tar archives as Python's tarfile and as GNU tar read them; one JSON object per archive on stdout.

usage: listing.py ARCHIVE...
"""
import hashlib
import json
import re
import subprocess
import sys
import tarfile

KINDS = {tarfile.REGTYPE: "File", tarfile.AREGTYPE: "File", tarfile.CONTTYPE: "File", tarfile.LNKTYPE: "HardLink",
         tarfile.SYMTYPE: "Symlink", tarfile.DIRTYPE: "Directory", tarfile.CHRTYPE: "Special",
         tarfile.BLKTYPE: "Special", tarfile.FIFOTYPE: "Special"}


def raw(text):
    return text.encode("utf-8", "surrogateescape").hex()


def by_python(path):
    entries = []
    try:
        with tarfile.open(path, "r:", errors="surrogateescape", encoding="utf-8") as archive:
            for member in archive:
                content = archive.extractfile(member).read() if member.isreg() else b""
                entries.append({
                    # Python strips slashes at the end, which say nothing.
                    "name": raw(member.name.rstrip("/")), "kind": KINDS.get(member.type, "other"),
                    "link": raw(member.linkname) if member.islnk() or member.issym() else "",
                    "mode": member.mode & 0o7777, "uid": member.uid, "gid": member.gid,
                    "mtime": int(member.mtime // 1), "content": hashlib.sha256(content).hexdigest()})
    except Exception as error:  # Whatever it does not like.
        return {"error": repr(error)}
    return {"entries": entries}


ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v", b"\\": b"\\"}


def unescape(name):
    def one(match):
        text = match.group(1)
        return bytes([int(text, 8)]) if text.isdigit() else ESCAPES.get(text, text)
    return re.sub(rb"\\([0-7]{3}|.)", one, name)


def by_gnu(path):
    run = subprocess.run(["tar", "--list", "--quoting-style=escape", "--file", path], capture_output=True,
                         env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"})
    if run.returncode != 0:
        return {"error": run.stderr.decode(errors="replace")}
    return {"names": [unescape(line).rstrip(b"/").hex() for line in run.stdout.splitlines()]}


for path in sys.argv[1:]:
    print(json.dumps({"python": by_python(path), "gnu": by_gnu(path)}))
