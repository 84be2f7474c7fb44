"""Reading of rendered objects: one of a kind, the server's container, flags."""

import re

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
FLAG = re.compile(r"--(\w+)(?:=(.*))?$")


def named(objects, kind):
    """The one object of this kind."""
    found = [item for item in objects if item["kind"] == kind]
    if len(found) != 1:
        raise LookupError(f"{len(found)} objects of kind {kind}")
    return found[0]


def pod_spec(objects):
    return named(objects, "Deployment")["spec"]["template"]["spec"]


def container(objects):
    (server,) = pod_spec(objects)["containers"]
    return server


def seconds(duration):
    """Of a duration as the server's flags have it, such as 1m30s."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", duration)
    if "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"no duration: {duration}")
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def parse_flags(lines):
    """{name: value} of lines --name=value; without a value it is "true"."""
    flags = {}
    for line in lines:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = FLAG.match(line)
        if match is None:
            raise ValueError(f"no flag: {line}")
        flags[match[1]] = "true" if match[2] is None else match[2]
    return flags


def flags(objects):
    """The server's flags: those of the ConfigMap, under those of the args."""
    args = parse_flags(container(objects)["args"])
    folder, name = args["flagfile"].rsplit("/", 1)
    (volume,) = [mount["name"] for mount in container(objects)["volumeMounts"]
                 if mount["mountPath"] == folder]
    (source,) = [item["configMap"]["name"]
                 for item in pod_spec(objects)["volumes"]
                 if item["name"] == volume]
    (config,) = [item for item in objects if item["kind"] == "ConfigMap" and
                 item["metadata"]["name"] == source]
    return {**parse_flags(config["data"][name].splitlines()), **args}


def port_of(address):
    return int(address.rsplit(":", 1)[1])


def matches(selector, labels):
    """Whether a selector's matchLabels all are among labels."""
    return selector.items() <= labels.items()
