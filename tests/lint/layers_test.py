"""Each rule of the layering check, broken once: the check must say so."""

import pathlib
import tempfile
import unittest

from tests.lint import layers


class LayersTest(unittest.TestCase):

    def check(self, path: str, text: str) -> list:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / path
            file.parent.mkdir(parents=True)
            file.write_text(text, encoding="utf-8")
            return layers.check_tree(pathlib.Path(folder))

    def test_a_lower_layer_may_be_included(self) -> None:
        self.assertEqual([], self.check(
            "scheduler/a.cc", '#include "engine/step.h"\n'))
        self.assertEqual([], self.check(
            "server/a.cc", '#include "overfill/v1/inference.pb.h"\n'))
        self.assertEqual([], self.check(
            "tests/server/a.cc", '#include "scheduler/request.h"\n'))

    def test_an_upper_layer_may_not(self) -> None:
        for path, target in (("kernels/a.h", "engine/step.h"),
                             ("engine/a.cc", "scheduler/request.h"),
                             ("scheduler/a.cc", "server/config.h"),
                             ("client/a.cc", "engine/step.h"),
                             ("engine/a.cc", "tests/engine/tiny_model.h")):
            found = self.check(path, f'#include "{target}"\n')
            self.assertEqual(1, len(found), path)
            self.assertIn(f"{path}:1: includes {target}", found[0])

    def test_cuda_headers_stay_in_their_folder(self) -> None:
        text = "#include <cuda_runtime.h>\n"
        self.assertEqual([], self.check("kernels/cuda/a.cc", text))
        self.assertEqual(1, len(self.check("kernels/a.cc", text)))

    def test_generated_protos_stay_above(self) -> None:
        self.assertEqual(1, len(self.check(
            "scheduler/a.cc", '#include "overfill/v1/inference.pb.h"\n')))

    def test_no_backend_conditions_above_kernels(self) -> None:
        text = "#ifdef OVERFILL_CUDA\n#endif\n"
        self.assertEqual(1, len(self.check("engine/a.cc", text)))
        self.assertEqual([], self.check("kernels/a.cc", text))

    def test_long_files_are_named(self) -> None:
        self.assertEqual(1, len(self.check("engine/a.cc", "\n" * 501)))


if __name__ == "__main__":
    unittest.main()
