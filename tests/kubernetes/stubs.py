"""The stubs of the API and of health, generated in a folder of this process."""

import importlib
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
_work = tempfile.TemporaryDirectory()

subprocess.run(
    ["protoc", f"-I{ROOT / 'proto'}", f"-I{ROOT / 'tests' / 'e2e' / 'proto'}",
     f"--python_out={_work.name}", f"--grpc_out={_work.name}",
     f"--plugin=protoc-gen-grpc={shutil.which('grpc_python_plugin')}",
     "overfill/v1/inference.proto", "health.proto"], check=True)
sys.path.insert(0, _work.name)

pb2 = importlib.import_module("overfill.v1.inference_pb2")
pb2_grpc = importlib.import_module("overfill.v1.inference_pb2_grpc")
health_pb2 = importlib.import_module("health_pb2")
health_grpc = importlib.import_module("health_pb2_grpc")
