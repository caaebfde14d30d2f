"""Compares the definitions named io.k8s.… in the chart's schema with those of an API server: the same fields, and those that are required.

    definitions.py values.schema.json OPENAPI
"""

import json
import sys

# What the chart leaves out, and why.
LEFT_OUT = {
    ("io.k8s.api.apps.v1.RollingUpdateDaemonSet", "maxSurge"),  # kubelet takes one plugin of a name.
    ("io.k8s.api.core.v1.ResourceRequirements", "claims"),  # Their pod would have to name them.
    ("io.k8s.api.core.v1.EnvVarSource", "fileKeyRef"),  # There are no volumes of the user's.
}

schema = json.load(open(sys.argv[1]))["$defs"]
server = json.load(open(sys.argv[2]))["definitions"]
wrong = []
names = [name for name in schema if name.startswith("io.k8s.")]
for name in names:
    ours, theirs = schema[name], server[name]
    fields = set(theirs["properties"]) - {field for kind, field in LEFT_OUT if kind == name}
    for field in fields ^ set(ours["properties"]):
        wrong.append(f"{name}.{field} is known to {'the API server' if field in fields else 'the schema'} alone")
    for field in set(theirs.get("required", [])) - set(ours.get("required", [])):
        wrong.append(f"{name}.{field} is required")
if wrong or len(names) < 20:
    sys.exit("\n".join(wrong) or f"{len(names)} definitions")
print(f"{len(names)} definitions of the schema have the API server's fields")
