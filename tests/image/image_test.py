"""deploy/image, built for real and run: the image answers ./dev demo's prompt.

Needs root. What it makes lies in build/image; the base image there is kept for
a week, and compiled objects go to and come from the machine's ccache.
"""

import argparse
import errno
import os
import re
import shutil
import subprocess
import sys
import unittest

import sandbox
from sandbox import ROOT, WORK

sandbox.enter()  # before anything is mounted or started

import grpc  # noqa: E402

import root_file_system as rfs  # noqa: E402
from buildah import Store, phase, print_phases  # noqa: E402
from container import Container  # noqa: E402
from debian_base import base_image  # noqa: E402

IMAGE = "localhost/overfill-test:cpu"
AGAIN = "localhost/overfill-test:again"
EPOCH = "1700000000"
REVISION = "0123456789abcdef0123456789abcdef01234567"
# grpc.health.v1.HealthCheckResponse with the status SERVING, encoded.
SERVING = b"\x08\x01"

client = None  # set by main
store = None


def read(*names):
    with open(os.path.join(ROOT, *names)) as file:
        return file.read()


def from_dev(name):
    """What ./dev has in a variable; a backslash continues the line."""
    found = re.search(rf'^readonly {name}="?((?:[^"\\\n]|\\\n)*)"?$',
                      read("dev"), re.MULTILINE)
    return found[1].replace("\\\n", "")


def version():
    return re.search(r"^project\(overfill VERSION ([\d.]+)",
                     read("CMakeLists.txt"), re.MULTILINE)[1]


def ccache():
    done = subprocess.run(["ccache", "--get-config", "cache_dir"], check=True,
                          stdout=subprocess.PIPE, text=True)
    os.makedirs(done.stdout.strip(), exist_ok=True)
    return done.stdout.strip()


def copy_sources():
    """A context that stays as it is while somebody edits the checkout; with
    two folders that Dockerfile.dockerignore has to keep out."""
    def ignored(folder, names):
        return {"node_modules", "__pycache__"} | (
            {".git", "build", "models"} if folder == ROOT else set())
    context = os.path.join(WORK, "tmp", "context")
    shutil.copytree(ROOT, context, ignore=ignored, symlinks=True)
    for folder in [".git", "build/release"]:
        os.makedirs(os.path.join(context, folder))
    return context


def build(name, tag, *arguments):
    """The log of the build. Its sources lie where the checkout's do, and its
    language is this one, so that ccache takes it for the same compilation."""
    base, context = ImageCase.base, ImageCase.context
    values = {
        "BUILD_BASE": base, "RUNTIME_BASE_CPU": base, "VERSION": version(),
        "REVISION": REVISION, "SOURCE_DATE_EPOCH": EPOCH, "SOURCE_DIR": ROOT,
        "CCACHE_DIR": "/machine/ccache"}
    for key in ["LANG", "LC_ALL", "OVERFILL_JOBS"]:
        if key in os.environ:
            values[key] = os.environ[key]
    return store.build(
        name, "--pull-never", "--tag", tag, "--timestamp", EPOCH,
        "--volume", f"{ccache()}:/machine/ccache",
        *(f"--build-arg={key}={value}" for key, value in values.items()),
        "--file", os.path.join(context, "deploy/image/Dockerfile"),
        *arguments, context)


def setUpModule():
    global store
    with phase("store"):
        store = Store()
    with phase("base image"):
        ImageCase.base = base_image(store)
    ImageCase.context = copy_sources()
    with phase("image"):
        build("image", IMAGE)
    inspected = store.inspect(IMAGE)
    ImageCase.config = inspected["OCIv1"]["config"]
    ImageCase.inspected = inspected
    ImageCase.root = store.mount(IMAGE)
    print(f"size of the image: {rfs.size(ImageCase.root) / 1e6:.1f} MB",
          flush=True)


def tearDownModule():
    with phase("removal"):
        store.close(keep=[ImageCase.base, IMAGE])
    print_phases()


class ImageCase(unittest.TestCase):
    base = context = config = inspected = root = None


class ConfigurationTest(ImageCase):

    def test_how_it_runs(self):
        self.assertEqual(self.config["User"], "65532:65532")
        self.assertEqual(self.config["Entrypoint"],
                         ["/usr/bin/overfill-server"])
        self.assertNotIn("Cmd", self.config)
        self.assertEqual(self.config["StopSignal"], "SIGTERM")
        self.assertEqual(set(self.config["ExposedPorts"]),
                         {"50051/tcp", "50052/tcp", "9464/tcp"})
        self.assertNotIn("Volumes", self.config)

    def test_environment_has_nothing_of_the_build(self):
        names = {entry.split("=")[0] for entry in self.config["Env"]}
        self.assertEqual(
            {name for name in names if not name.startswith("OVERFILL_")} -
            {"PATH"}, set())

    def test_labels(self):
        labels = self.config["Labels"]
        prefix = "org.opencontainers.image."
        self.assertEqual(labels[prefix + "version"], version())
        self.assertEqual(labels[prefix + "revision"], REVISION)
        self.assertEqual(labels[prefix + "licenses"], "Apache-2.0")
        self.assertEqual(labels[prefix + "title"], "overfill-server")

    def test_same_sources_make_the_same_image(self):
        with phase("image, once more"):
            build("again", AGAIN, "--target", "runtime-cpu")
        again = store.inspect(AGAIN)
        self.assertEqual(rfs.differences(self.root, store.mount(AGAIN)), set())
        self.assertEqual(again["FromImageID"], self.inspected["FromImageID"])


class FilesTest(ImageCase):

    def test_every_file_is_of_a_package_or_expected(self):
        owned = rfs.owners(self.root)
        others = {path for path in rfs.files(self.root)
                  if path not in owned and
                  not path.startswith("/var/lib/dpkg/")}
        doc = "/usr/share/doc/overfill-server"
        expected = {"/usr/bin/overfill-server", "/etc/passwd", "/etc/group",
                    "/etc/nsswitch.conf", f"{doc}/copyright", rfs.INVENTORY}
        self.assertEqual({path for path in others - expected
                          if not path.startswith(f"{doc}/compiled_in/")},
                         set())
        self.assertEqual(expected - others, set())

    def test_packages_are_whole(self):
        # Exit code 0 and no line: every file has its package's checksum.
        done = subprocess.run(["dpkg", f"--root={self.root}", "--verify"],
                              capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout, done.stderr),
                         (0, "", ""))

    def test_inventory(self):
        lines = rfs.inventory(self.root)
        packages = {line["name"]: line["version"] for line in lines
                    if line["kind"] == "package"}
        self.assertEqual(packages, rfs.database(self.root))
        self.assertEqual(set(packages),
                         rfs.listed("library") | rfs.listed("data"))
        compiled_in = {line["name"] for line in lines
                       if line["kind"] == "compiled_in"}
        self.assertLessEqual({"libhwy-dev", "nlohmann-json3-dev"}, compiled_in)
        for line in lines:
            self.assertTrue(all(line.values()), line)
            with open(rfs.inside(self.root, line["licence"])) as file:
                self.assertRegex(file.read(), "(?i)copyright")

    def test_nothing_but_the_server_can_be_run(self):
        programs = {path for path in rfs.files(self.root)
                    if rfs.is_program(self.root, path)}
        self.assertEqual(programs, {"/usr/bin/overfill-server"})
        for name in ["sh", "bash", "dash", "busybox", "ldconfig"]:
            for folder in ["/bin", "/usr/bin", "/sbin", "/usr/sbin"]:
                self.assertFalse(
                    os.path.lexists(f"{self.root}{folder}/{name}"), name)

    def test_rights(self):
        self.assertEqual(rfs.with_extra_rights(self.root), [])
        self.assertEqual(rfs.not_of_root(self.root), [])
        self.assertEqual(rfs.world_writable(self.root) -
                         {"/tmp", "/var/tmp", "/var/lock"}, set())

    def test_nothing_is_left_of_the_build(self):
        for name in ["/etc/apt", "/var/lib/apt", "/usr/lib/apt", "/usr/src",
                     "/machine", "/built", "/image", ROOT, "/var/cache",
                     "/var/log", "/root", "/home"]:
            path = self.root + name
            found = [] if not os.path.isdir(path) else os.listdir(path)
            self.assertEqual(found, [], name)
        self.assertEqual(rfs.newer_than(self.root, int(EPOCH)), [])


class RunCase(ImageCase):

    @classmethod
    def start(cls, *arguments, **options):
        return Container(cls.config, cls.root, list(arguments),
                         models=os.path.join(ROOT, from_dev("pair")),
                         **options)


class ServingTest(RunCase):
    """One container, on free ports of loopback, for all."""

    @classmethod
    def setUpClass(cls):
        with phase("start of the container"):
            cls.container = cls.start("--listen=127.0.0.1:0",
                                      "--health_listen=127.0.0.1:0",
                                      "--metrics_listen=127.0.0.1:0")
            cls.target, _, cls.health = cls.container.wait_ready()
        cls.proc = f"/proc/{cls.container.pid}"

    @classmethod
    def tearDownClass(cls):
        code = cls.container.stop()
        assert code == 0, f"exit code {code}: {cls.container.lines}"

    def status(self):
        with open(f"{self.proc}/status") as file:
            return {name: value.split() for name, value in (
                line.split(":", 1) for line in file)}

    def test_answers_the_prompt_of_the_demo(self):
        prompt = "\n".join([from_dev("passage"),
                            f"Question: {from_dev('question')}", "Answer:"])
        done = subprocess.run(
            [client, f"--target={self.target}", "--temperature=0", prompt],
            capture_output=True, text=True, timeout=120)
        self.assertEqual((done.returncode, done.stdout.rstrip("\n")),
                         (0, " " + from_dev("answer")), done.stderr)

    def test_health(self):
        for target in [self.target, self.health]:
            with grpc.insecure_channel(target) as channel:
                check = channel.unary_unary("/grpc.health.v1.Health/Check")
                self.assertEqual(check(b"", timeout=60), SERVING, target)

    def test_process_has_no_rights(self):
        status = self.status()
        user, group = self.config["User"].split(":")
        self.assertEqual(status["Uid"], [user] * 4)
        self.assertEqual(status["Gid"], [group] * 4)
        self.assertEqual(status["Groups"], [])
        for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]:
            self.assertEqual(int(status[name][0], 16), 0, name)
        self.assertEqual(status["NoNewPrivs"], ["1"])
        self.assertEqual(status["Seccomp"], ["2"])
        self.assertEqual(status["NSpid"][-1], "1")

    def test_no_folder_can_be_written_to(self):
        # Not even by root, who looks in from outside.
        folders = {""} | rfs.folders(self.root) | {"/models/full"}
        self.assertGreater(len(folders), 50)
        for folder in folders - {"/proc", "/dev"}:
            path = f"{self.proc}/root{folder}/probe"
            with self.assertRaises(OSError, msg=folder) as caught:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
                os.unlink(path)
            self.assertEqual(caught.exception.errno, errno.EROFS, folder)

    def test_packages_are_those_that_are_loaded(self):
        with open(f"{self.proc}/maps") as file:
            loaded = {line.split(maxsplit=5)[5].strip() for line in file
                      if "/" in line}
        owners = rfs.owners(self.root)
        owners["/usr/bin/overfill-server"] = None
        libraries = {owners[rfs.canonical(self.root, path)] for path in loaded
                     if not path.startswith(("/models/", "/dev/"))}
        self.assertEqual(libraries - {None}, rfs.listed("library"))


class StartTest(RunCase):

    def check(self, arguments, code, said):
        container = self.start(*arguments)
        self.addCleanup(container.kill)
        self.assertEqual(container.wait(), code, container.lines)
        self.assertRegex("\n".join(container.lines), said)

    def test_version_is_the_label(self):
        self.check(["--version"], 0, rf"^overfill-server {version()}$")

    def test_plaintext_has_to_be_asked_for(self):
        self.check([], 2, "--allow_plaintext$")

    def test_defaults(self):
        container = self.start("--allow_plaintext", own_network=True)
        self.addCleanup(container.kill)
        self.assertEqual(container.wait_ready(), [
            "0.0.0.0:50051", "0.0.0.0:9464", "0.0.0.0:50052"])
        self.assertEqual(container.stop(), 0)


class CudaTest(ImageCase):
    """No more than this: kernels/cuda is not written yet."""

    def test_dockerfile_gets_as_far_as_its_base(self):
        with self.assertRaisesRegex(RuntimeError, "overfill-cuda-base"):
            build("cuda", "localhost/overfill-test:cuda",
                  "--target", "runtime-cuda")

    def test_preset_still_stops(self):
        # When this fails, the CUDA image can be built and tested: do it.
        folder = os.path.join(WORK, "tmp", "cuda")
        done = subprocess.run(
            ["cmake", "--preset", "cuda", "-B", folder],
            cwd=ROOT, capture_output=True, text=True)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("kernels/cuda is not part of this tree yet", done.stderr)


def main():
    global client
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--client", required=True)
    options, rest = parser.parse_known_args()
    client = os.path.abspath(options.client)
    unittest.main(argv=sys.argv[:1] + rest)


if __name__ == "__main__":
    main()
