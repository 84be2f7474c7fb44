import pathlib
import pickle
import random
import struct
import tempfile
import unittest
import zipfile

import numpy as np
import torch

from training import torch_file
from training.errors import UserError


class TorchFileTest(unittest.TestCase):
    def setUp(self) -> None:
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.path = pathlib.Path(made.name) / "x.bin"

    def test_every_tensor_as_torch_load_has_it(self):
        base = torch.randn(6, 10)
        state = {
            "plain": base, "view": base[2:4, 3:7], "turned": base.t(),
            "half": base.half(), "bf16": base.bfloat16()[1:],
            "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3),
            "parameter": torch.nn.Parameter(base.clone())}
        torch.save(state, self.path)
        reader = torch_file.open_state(self.path)
        self.assertEqual(reader.names(), list(state))
        for name, tensor in torch.load(self.path).items():
            self.assertEqual(reader.shape(name), tuple(tensor.shape))
            got = reader.read(name, None)
            self.assertEqual(got.dtype, tensor.dtype)
            self.assertTrue(torch.equal(got, tensor), name)

    def test_code_is_not_run(self):
        flag = self.path.with_name("ran")

        class Evil:
            def __reduce__(self):
                return (open, (str(flag), "w"))

        for data in ({"x": Evil()}, torch.nn.Linear(1, 1),
                     {"x": torch.zeros(1), "y": np.zeros(1)}):
            torch.save(data, self.path)
            with self.assertRaisesRegex(UserError, "x.bin: is not read: it "
                                        "names"):
                torch_file.open_state(self.path)
        self.assertFalse(flag.exists())

    def write_pickle(self, pickled: bytes, storage: bytes = b"\0" * 16):
        with zipfile.ZipFile(self.path, "w") as archive:
            archive.writestr("a/data.pkl", pickled)
            archive.writestr("a/data/0", storage)

    def tensor_pickle(self, *rebuild, numel=4, kind=b"FloatStorage",
                      after=b"") -> bytes:
        """{"x": a tensor of the storage "0"}, then `after` on it."""
        pid = (b"(" + pickle.dumps("storage", 2)[2:-1]
               + b"ctorch\n" + kind + b"\n" + pickle.dumps("0", 2)[2:-1]
               + pickle.dumps("cpu", 2)[2:-1]
               + pickle.dumps(numel, 2)[2:-1] + b"tQ")
        args = b"".join(pickle.dumps(arg, 2)[2:-1] for arg in rebuild)
        return (b"\x80\x02}" + pickle.dumps("x", 2)[2:-1]
                + b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + args
                + b"tR" + after + b"s.")

    def test_tensors_that_lie(self):
        self.write_pickle(self.tensor_pickle(0, (2, 2), (2, 1)))
        reader = torch_file.open_state(self.path)
        self.assertTrue(torch.equal(reader.read("x"), torch.zeros(2, 2)))
        beyond, lies = "reaches beyond its storage", "is malformed"
        for args, said in (
                ((1, (2, 2), (2, 1)), beyond), ((0, (5,), (1,)), beyond),
                ((0, (1 << 40,), (0,)), beyond), ((0, (2,), (4,)), beyond),
                ((-1, (2,), (1,)), lies), ((0, (2,), (-1,)), lies),
                ((0, (2, 2), (1,)), lies), ((0, (2.0,), (1,)), lies),
                ((0, (1,) * 40, (1,) * 40), lies), ((0, None, (1,)), lies),
                ((True, (1,), (1,)), lies), ((), "is not read")):
            self.write_pickle(self.tensor_pickle(*args))
            with self.assertRaisesRegex(UserError, said, msg=str(args)):
                torch_file.open_state(self.path)
        self.write_pickle(self.tensor_pickle(0, (2,), (1,), numel=5))
        with self.assertRaisesRegex(UserError, "has 16 bytes, not 20"):
            torch_file.open_state(self.path)
        self.write_pickle(self.tensor_pickle(0, (2,), (1,), kind=b"Tensor"))
        with self.assertRaisesRegex(UserError, "names torch.Tensor"):
            torch_file.open_state(self.path)

    def test_a_checked_tensor_cannot_be_changed(self):
        for state in ({"offset": 1 << 40}, (None, {"offset": 1 << 40}),
                      (None, {"__class__": 1})):
            after = pickle.dumps(state, 2)[2:-1] + b"b"
            self.write_pickle(self.tensor_pickle(0, (2,), (1,), after=after))
            with self.assertRaisesRegex(UserError, "is not read"):
                torch_file.open_state(self.path)

    def test_a_record_before_the_file_is_refused(self):
        with zipfile.ZipFile(self.path, "w") as archive:
            archive.writestr("a/data/0", b"\0" * 16)
            archive.writestr("a/data.pkl",
                             self.tensor_pickle(0, (2, 2), (2, 1)))
        data = bytearray(self.path.read_bytes())
        # The directory's place, told too large, moves all records back; that
        # of the pickle is put right again.
        for at in (data.rindex(b"PK\5\6") + 16, data.rindex(b"PK\1\2") + 42):
            (place,) = struct.unpack_from("<I", data, at)
            struct.pack_into("<I", data, at, place + 1000)
        self.path.write_bytes(bytes(data))
        with self.assertRaisesRegex(UserError, "'x': the file is truncated"):
            torch_file.open_state(self.path)

    def test_a_pickle_asks_for_no_more_memory_than_it_has(self):
        self.write_pickle(b"\x80\x02}r\xff\xff\xff\x7f.")  # memo 2^31 - 1
        with self.assertRaisesRegex(UserError, "holds no state dict"):
            torch_file.open_state(self.path)
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + b"0" * (17 << 20))
        with self.assertRaisesRegex(UserError, "data.pkl has 17825794 bytes"):
            torch_file.open_state(self.path)

    def test_broken_files(self):
        torch.save({"x": torch.randn(100)}, self.path)
        whole = self.path.read_bytes()
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")
        rng = random.Random(seed)
        cuts = [whole[:n] for n in range(0, len(whole), 37)]
        for _ in range(300):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            cuts.append(bytes(data))
        for data in cuts:
            self.path.write_bytes(data)
            try:
                torch_file.open_state(self.path).read("x")
            except UserError as error:
                self.assertTrue(str(error).startswith(str(self.path)))
        torch.save({"x": torch.randn(2)}, self.path,
                   _use_new_zipfile_serialization=False)
        with self.assertRaisesRegex(UserError, "is no file of torch.save"):
            torch_file.open_state(self.path)


if __name__ == "__main__":
    unittest.main()
