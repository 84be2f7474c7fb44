"""A base image of Debian 12 by debootstrap, from the machine's own mirror.

How apt gets to the mirror goes into the base, and from there nowhere else: a
runtime image takes no file of its base.
"""

import hashlib
import os
import re
import shutil
import subprocess
import time

from buildah import logged
from sandbox import WORK

_CODENAME = "bookworm"
_MAX_AGE_SECONDS = 7 * 24 * 3600
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# How to reach a mirror and whether to believe its clock; nothing else.
_APT_OPTIONS = re.compile(
    r"Acquire::(https?(::[\w.-]+)*|Retries|Check-Date|Check-Valid-Until"
    r"|Max-FutureTime) ")


def _output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE,
                          text=True).stdout


def _targets():
    """(URI, suite) of each of Debian's own archives that apt knows."""
    lines = _output("apt-get", "indextargets", "--format",
                    "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)",
                    "Created-By: Packages").splitlines()
    suites = [_CODENAME, f"{_CODENAME}-updates", f"{_CODENAME}-security"]
    found = []
    for words in map(str.split, lines):
        if len(words) == 4 and words[0] == "Debian" and words[3] == "main":
            if words[2] in suites and tuple(words[1:3]) not in found:
                found.append(tuple(words[1:3]))
    return found


def _archives():
    found = _targets()
    if not found:  # apt knows an archive's origin only once it has its index
        logged("apt-update", ["apt-get", "update"])
        found = _targets()
    mirror = [uri for uri, suite in found if suite == _CODENAME]
    if not mirror:
        raise RuntimeError(f"apt has no archive of Debian's {_CODENAME}")
    return mirror[0], found


def _apt_options():
    return [line for line in _output("apt-config", "dump").splitlines()
            if _APT_OPTIONS.match(line) and not line.endswith(' "";')]


def _proxies(options):
    """debootstrap's wget reads the environment, not apt's configuration."""
    environment = dict(os.environ)
    for line in options:
        match = re.fullmatch(r'Acquire::(https?)::Proxy "(.+)";', line)
        if match and match[2] != "DIRECT":
            environment.setdefault(f"{match[1]}_proxy", match[2])
    return environment


def _bootstrap(directory, mirror, environment):
    command = ["debootstrap", "--variant=minbase", f"--keyring={_KEYRING}",
               _CODENAME, directory, mirror]
    if mirror.startswith("https:"):
        command.insert(1, "--include=ca-certificates")
    for attempt in [1, 2]:
        shutil.rmtree(directory, ignore_errors=True)
        try:
            logged("debootstrap", command, env=environment)
            return
        except RuntimeError as error:
            if attempt == 2:
                raise
            print(f"once more: {error}", flush=True)


def _configure_apt(directory, archives, options):
    apt = os.path.join(directory, "etc", "apt")
    with open(os.path.join(apt, "sources.list"), "w") as file:
        for uri, suite in archives:
            file.write(f"deb {uri} {suite} main\n")
    with open(os.path.join(apt, "apt.conf.d", "90machine"), "w") as file:
        file.write("\n".join([*options, 'Acquire::Retries "3";', ""]))


def base_image(store):
    """The name of a base not older than a week, made if there is none."""
    mirror, archives = _archives()
    options = _apt_options()
    with open(__file__, "rb") as file:
        recipe = file.read() + repr((archives, options)).encode()
    name = ("localhost/overfill-test-base:" +
            hashlib.sha256(recipe).hexdigest()[:16])
    stamp = os.path.join(WORK, "base.stamp")
    if any(name in names for names in store.images().values()):
        age = (time.time() - os.path.getmtime(stamp)
               if os.path.exists(stamp) else _MAX_AGE_SECONDS)
        if 0 <= age < _MAX_AGE_SECONDS:
            print(f"the base image is {age / 3600:.1f} hours old", flush=True)
            return name
    directory = os.path.join(WORK, "tmp", "base")
    _bootstrap(directory, mirror, _proxies(options))
    _configure_apt(directory, archives, options)
    container = store.run("from", "scratch")
    store.run("add", container, directory, "/")
    store.run("commit", "--quiet", container, name)
    store.run("rm", container)
    shutil.rmtree(directory)
    with open(stamp, "w"):
        pass
    return name
