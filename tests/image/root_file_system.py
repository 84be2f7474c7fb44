"""What lies in the root file system of an image."""

import csv
import glob
import hashlib
import os
import stat

from sandbox import ROOT

PACKAGES = os.path.join(ROOT, "deploy", "image", "packages.cpu")
INVENTORY = "/usr/share/doc/overfill-server/packages.tsv"


def listed(kind):
    """Packages of a kind in packages.cpu."""
    with open(PACKAGES) as file:
        words = [line.split() for line in file]
    return {line[1] for line in words if line and line[0] == kind}


def inside(root, path):
    """The real file that an image's path leads to."""
    found = os.path.realpath(root + path)
    if not found.startswith(root + "/"):
        raise ValueError(f"{path} leads out of the image")
    return found


def canonical(root, path):
    """The image's path with no link in its folder: /lib/x is /usr/lib/x."""
    folder, name = os.path.split(path)
    folder = os.path.realpath(root + folder)
    return os.path.join(folder, name)[len(root):]


def _entries(root):
    """(path in the image, its lstat) of everything below the root."""
    for folder, folders, names in os.walk(root):
        for name in folders + names:
            path = os.path.join(folder, name)
            yield path[len(root):], os.lstat(path)


def files(root):
    """All but folders."""
    return {path for path, entry in _entries(root)
            if not stat.S_ISDIR(entry.st_mode)}


def folders(root):
    return {path for path, entry in _entries(root)
            if stat.S_ISDIR(entry.st_mode)}


def size(root):
    return sum(entry.st_size for _, entry in _entries(root)
               if stat.S_ISREG(entry.st_mode))


def owners(root):
    """The package of each path that dpkg's database names."""
    found = {}
    for path in glob.glob(f"{root}/var/lib/dpkg/info/*.list"):
        package = os.path.basename(path)[:-len(".list")].split(":")[0]
        with open(path) as file:
            for line in file.read().splitlines():
                found[canonical(root, line)] = package
    return found


def database(root):
    """Versions by package, as dpkg reads them."""
    with open(f"{root}/var/lib/dpkg/status") as file:
        entries = file.read().strip().split("\n\n")
    found = {}
    for entry in entries:
        fields = dict(line.split(": ", 1) for line in entry.splitlines()
                      if ": " in line and not line.startswith(" "))
        assert fields["Status"] == "install ok installed", entry
        found[fields["Package"]] = fields["Version"]
    return found


def inventory(root):
    with open(root + INVENTORY, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def is_program(root, path):
    """A file that may be run and is no shared library."""
    mode = os.lstat(root + path).st_mode
    return (stat.S_ISREG(mode) and mode & 0o111 != 0 and
            ".so" not in os.path.basename(path))


def with_extra_rights(root):
    """What runs with more rights than its caller's."""
    return [path for path, entry in _entries(root)
            if not stat.S_ISLNK(entry.st_mode) and (
                entry.st_mode & (stat.S_ISUID | stat.S_ISGID) or
                "security.capability" in os.listxattr(root + path))]


def not_of_root(root):
    return [path for path, entry in _entries(root)
            if (entry.st_uid, entry.st_gid) != (0, 0)]


def world_writable(root):
    return {path for path, entry in _entries(root)
            if not stat.S_ISLNK(entry.st_mode) and entry.st_mode & stat.S_IWOTH}


def newer_than(root, seconds):
    return [path for path, entry in _entries(root) if entry.st_mtime > seconds]


def differences(root, other):
    """Paths that differ in rights, time or content, or are in one alone."""
    def described(base):
        found = {}
        for path, entry in _entries(base):
            kind = stat.S_IFMT(entry.st_mode)
            content = None
            if kind == stat.S_IFREG:
                with open(base + path, "rb") as file:
                    content = hashlib.sha256(file.read()).digest()
            elif kind == stat.S_IFLNK:
                content = os.readlink(base + path)
            found[path] = (entry.st_mode, entry.st_mtime, content)
        return found
    return {path for path, _ in
            set(described(root).items()) ^ set(described(other).items())}
