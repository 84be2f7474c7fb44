"""Reads a server's metrics again and again, as Prometheus does, and prints how
long each time took, in seconds, as JSON: timed_gets.py HOST:PORT COUNT PAUSE

A process of its own, so that it waits for no other thread.
"""

import http.client
import json
import sys
import time
from typing import List


def timed_get(address: str) -> float:
    """Compressed, and with a connection of its own, which is what Prometheus
    has after each of its intervals; from the connect to the last byte."""
    begin = time.perf_counter()
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/metrics",
                       headers={"Accept-Encoding": "gzip"})
    answer = connection.getresponse()
    body = answer.read()
    taken = time.perf_counter() - begin
    connection.close()
    if answer.status != 200 or not body:
        raise RuntimeError(f"{answer.status}, {len(body)} bytes")
    return taken


def timed_gets(address: str, count: int, pause: float) -> List[float]:
    taken = []
    for _ in range(count):
        taken.append(timed_get(address))
        time.sleep(pause)
    return taken


if __name__ == "__main__":
    json.dump(timed_gets(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])),
              sys.stdout)
