"""The C++ example, copied into a project of its own and built there."""

import os
import shutil
import subprocess
import unittest

import support  # first: it finds the harness
import harness


class StandaloneTest(unittest.TestCase):

    def test_builds_where_it_is_copied_to(self):
        directory = harness.work_dir("standalone")
        shutil.copytree(os.path.join(support.EXAMPLES, "cpp"),
                        os.path.join(directory, "app"))
        shutil.copytree(os.path.join(harness.ROOT, "proto", "overfill"),
                        os.path.join(directory, "protos", "overfill"))
        shutil.copy(os.path.join(support.EXAMPLES, "service_config.json"),
                    os.path.join(directory, "retries.json"))
        # With ccache, paths relative to here make it the same build each time.
        environment = dict(os.environ, CCACHE_BASEDIR=directory,
                           CCACHE_NOHASHDIR="1")
        launcher = (["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"]
                    if shutil.which("ccache") else [])
        for command in [
                ["cmake", "-S", "app", "-B", "build", *launcher,
                 "-DOVERFILL_PROTO_DIR=" + os.path.join(directory, "protos"),
                 "-DOVERFILL_SERVICE_CONFIG=" +
                 os.path.join(directory, "retries.json")],
                ["cmake", "--build", "build"]]:
            done = subprocess.run(command, cwd=directory, env=environment,
                                  stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)
            self.assertEqual(done.returncode, 0, done.stdout)
        support.example = "cpp"
        support.cpp_client = os.path.join(directory, "build", "client")
        server = support.demo_server()
        try:
            done = support.run(f"--target={server.target}", "--temperature=0",
                               support.PROMPTS[0])
        finally:
            support.end(server)
        self.assertEqual((done.code, done.out),
                         (0, " Anna lives in Bergen.\n"), done.all)


if __name__ == "__main__":
    harness.main()
