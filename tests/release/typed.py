"""Types the commands that a document shows below a heading, and compares what they print. `…` in the document is anything.

usage: typed.py DOCUMENT HEADING PRELUDE [FROM=TO]…

PRELUDE is shell code that comes before them; FROM is what the document has where TO is here, in this order.
"""

import re
import subprocess
import sys

document, heading, prelude, *names = sys.argv[1:]
names = [name.split("=", 1) for name in names]
text = open(document).read()
section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.M | re.S).group(1)

session = []
for block in re.findall(r"^```\n(.*?)^```$", section, re.M | re.S):
    for line in block.splitlines():
        if line.startswith("$ "):
            session.append((line[2:], []))
        else:
            session[-1][1].append(line)
assert session, f"{document} has no commands below {heading}"


def here(words):
    for name, value in names:
        words = words.replace(name, value)
    return words


for command, shown in session:
    script = f"{prelude}\nset -o pipefail\n{here(command)}"
    ran = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed = ran.stdout
    if ran.returncode:
        sys.exit(f"$ {command}\nfails: {printed}")
    # A line that is nothing but … is any number of lines.
    pattern = "".join(
        "(?:.*\n)*" if line == "…" else re.sub("…", ".*", re.sub(r"\\…", "…", re.escape(here(line)))) + "\n" for line in shown
    )
    if shown and not re.fullmatch(pattern, printed):
        sys.exit(f"$ {command}\nprints:\n{printed}\nand not:\n{here(chr(10).join(shown))}")
print(f"{len(session)} commands")
