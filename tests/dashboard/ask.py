"""Grafana's part: puts values for its variables into the expressions of a dashboard, asks Prometheus, and names the series."""

import json
import math
import re
import time
import urllib.parse
import urllib.request


class Prometheus:
    """Asked about the seconds that end now, one value for each sample."""

    def __init__(self, url, seconds, step):
        self.url, self.step, self.end = url, step, time.time()
        self.start = self.end - seconds
        # Grafana's, where its step is the scrape interval:
        # https://grafana.com/docs/grafana/latest/datasources/prometheus/template-variables/
        self.rate_interval = 4 * step

    def series(self, target):
        """The series of a panel's target: the name of each, and its times since the start and values. NaN is no value."""
        variables = {"$__rate_interval": f"{self.rate_interval}s", "$namespace": ".*", "$node": ".*"}
        expression = target["expr"]
        for variable, value in variables.items():
            expression = expression.replace(variable, value)
        if "$" in expression:
            raise ValueError(f"there is a variable without a value in {expression}")
        if target.get("instant"):
            arguments = {"query": expression, "time": self.end}
        else:
            arguments = {"query": expression, "start": self.start, "end": self.end, "step": self.step}
        way = "query" if target.get("instant") else "query_range"
        with urllib.request.urlopen(f"{self.url}/api/v1/{way}?{urllib.parse.urlencode(arguments)}", timeout=30) as answer:
            results = json.load(answer)["data"]["result"]
        for result in results:
            samples = result.get("values") or [result["value"]]
            values = [(at - self.start, float(value)) for at, value in samples]
            yield named(target.get("legendFormat", ""), result["metric"]), [it for it in values if not math.isnan(it[1])]


def named(template, labels):
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), template)
