"""The training loop: exact to resume, safe to kill, the same on processes."""

import math
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import torch

from tests.training import trainer_program
from training import distributed, trainer, trainer_metrics, trainer_state
from training.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_STEPS = 24


def start(folder, num_steps, kind="none", env=None):
    return subprocess.Popen(
        [sys.executable, "-B", "-m", "tests.training.trainer_program",
         str(folder), str(num_steps), kind],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def curve(folder):
    """All but the clock."""
    rows = trainer_metrics.read_rows(folder / "metrics.csv")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def wait_for_step(process, step):
    for line in process.stderr:
        if line.startswith(f"step {step}/"):
            return
    raise AssertionError(f"never came to step {step}")


class TempTest(unittest.TestCase):
    def setUp(self):
        torch.set_num_threads(1)
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.said = []

    def make(self, name="a", num_steps=NUM_STEPS, **options):
        return trainer_program.make_trainer(
            self.folder / name, num_steps, log=self.said.append, **options)


class ResumeTest(TempTest):
    @classmethod
    def setUpClass(cls):
        cls.whole = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.whole)
        process = start(cls.whole, NUM_STEPS)
        out, errors = process.communicate(timeout=100)
        assert out == f"finished {NUM_STEPS}\n", errors
        cls.curve = curve(cls.whole)
        cls.state = torch.load(cls.whole / "student.pt")

    def assert_same_end(self):
        self.assertEqual(curve(self.folder), self.curve)
        state = torch.load(self.folder / "student.pt")
        for name, tensor in self.state.items():
            self.assertTrue(torch.equal(state[name], tensor), name)

    def finish(self):
        out, errors = start(self.folder, NUM_STEPS).communicate(timeout=100)
        self.assertEqual(out, f"finished {NUM_STEPS}\n", errors)
        return errors

    def test_the_curve_is_one_of_learning(self):
        self.assertEqual([row["step"] for row in self.curve],
                         list(range(NUM_STEPS + 1)))
        # Unlike the loss, it has no noise.
        self.assertLess(self.curve[-1]["dev_ce"],
                        self.curve[0]["dev_ce"] - 0.05)
        for step in (0, 5, 20, NUM_STEPS):
            self.assertIn("dev_exact", self.curve[step])
        self.assertNotIn("dev_loss", self.curve[4])

    def test_killed_anywhere_and_resumed_is_the_uninterrupted_run(self):
        seed = random.randrange(10 ** 6)
        print(f"seed {seed}")
        rng = random.Random(seed)
        for at in sorted(rng.sample(range(1, NUM_STEPS - 1), 2)):
            process = start(self.folder, NUM_STEPS)
            wait_for_step(process, at)
            time.sleep(rng.random() * 0.02)
            process.kill()
            process.communicate()
        self.finish()
        self.assert_same_end()

    def test_sigterm_saves_and_ends(self):
        process = start(self.folder, NUM_STEPS)
        wait_for_step(process, 7)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        word, step = out.split()
        self.assertEqual((word, process.returncode), ("stopped", 0))
        self.assertGreaterEqual(int(step), 7)
        saved = trainer_state.Checkpoints(self.folder / "run", print)
        self.assertEqual(saved.newest(), int(step))
        self.assertIn(f"after step {step}", self.finish())
        self.assert_same_end()

    def test_a_broken_newest_checkpoint_is_passed_over(self):
        for harm in ("cut", "bit", "no marker", "marker"):
            folder = self.folder / harm
            shutil.copytree(self.whole / "run", folder / "run")
            shutil.copy(self.whole / "metrics.csv", folder)
            newest = folder / "run" / f"step-{NUM_STEPS:08d}"
            state = newest / "state.pt"
            if harm == "cut":
                state.write_bytes(state.read_bytes()[:-100])
            elif harm == "bit":
                content = bytearray(state.read_bytes())
                content[len(content) // 2] ^= 4
                state.write_bytes(content)
            elif harm == "no marker":
                (newest / "complete.json").unlink()
            else:
                (newest / "complete.json").write_text("{}")
            run = self.make(harm, micro_rows=2)
            self.assertEqual(run.step, NUM_STEPS - 3)
            self.assertIn("passed over", self.said[-2])
            self.assertTrue(run.run().finished)
            self.assertEqual(curve(folder), self.curve)

    def test_two_checkpoints_are_kept(self):
        names = sorted(path.name for path in (self.whole / "run").iterdir())
        self.assertEqual(names, ["step-00000021", "step-00000024"])


class TrainerTest(TempTest):
    def test_a_finished_run_is_not_run_again(self):
        first = self.make(num_steps=4).run()
        again = self.make(num_steps=4).run()
        self.assertEqual(first.last, again.last)

    def test_other_arguments_are_no_resume(self):
        self.make(num_steps=4).run()
        with self.assertRaisesRegex(UserError, r"peak_lr 0.003, not 0.1"):
            self.make(num_steps=4, lr=0.1)
        with self.assertRaisesRegex(UserError, r"data None, not x"):
            self.make(num_steps=4, arguments={"data": "x"})
        self.assertEqual(
            self.make(num_steps=4, lr=0.1, resume=False).step, 0)

    def test_a_run_that_starts_over_keeps_its_own_checkpoints(self):
        self.make(num_steps=9).run()
        again = self.make(num_steps=9, lr=0.1, resume=False)
        while again.step < 4:
            again._train_step()
        again.save()
        saved = trainer_state.Checkpoints(self.folder / "a/run", print)
        self.assertEqual(saved.newest(), 4)
        self.assertEqual(self.make(num_steps=9, lr=0.1).step, 4)

    def test_non_finite_losses_stop_and_keep_the_checkpoint(self):
        run = self.make(num_steps=8)
        inner = run._batch_at

        def batch_at(step, micro, rank):
            if step == 6:
                with torch.no_grad():
                    run._student.model.model.norm.weight[0] = math.nan
            return inner(step, micro, rank)

        run._batch_at = batch_at
        with self.assertRaisesRegex(UserError, "step 7: the loss is nan"):
            run.run()
        saved = trainer_state.Checkpoints(self.folder / "a/run", print)
        self.assertEqual(saved.newest(), 6)
        self.assertEqual(curve(self.folder / "a")[-1]["step"], 6)
        self.assertTrue(self.make(num_steps=8).run().finished)

    def test_accumulation_is_the_larger_batch(self):
        def rows(micro_rows):
            self.make(f"m{micro_rows}", 5, micro_rows=micro_rows,
                      noisy=False).run()
            return curve(self.folder / f"m{micro_rows}")[1:]

        whole, parts = rows(8), rows(1)
        for a, b in zip(whole, parts):
            for name in ("loss", "grad_norm"):
                self.assertAlmostEqual(a[name], b[name], places=4)
        self.assertNotEqual(whole[0]["loss"], whole[4]["loss"])
        # The gradient is that of the mean over all target tokens.
        run = self.make("fresh", 1, noisy=False)
        student = run._student
        sums = run._objective(student, trainer_program.batch_of(0, range(8)))
        (sums.loss / sums.tokens).backward()
        norm = math.sqrt(sum(float(p.grad.pow(2).sum())
                             for p in student.parameters()))
        self.assertAlmostEqual(norm, parts[0]["grad_norm"], places=4)

    def test_schedule(self):
        config = trainer.TrainerConfig(
            num_steps=1000, peak_lr=2e-5, warmup_share=0.01)
        self.assertAlmostEqual(config.lr_at(0), 2e-6)
        self.assertAlmostEqual(config.lr_at(9), 2e-5)
        self.assertAlmostEqual(config.lr_at(10), 2e-5)
        self.assertAlmostEqual(config.lr_at(505), 1e-5)
        self.assertAlmostEqual(config.lr_at(1000), 0.0)
        flat = trainer.TrainerConfig(num_steps=1000, peak_lr=1.0,
                                     decay_share=0.3, final_lr_share=0.05)
        self.assertEqual(flat.lr_at(700), 1.0)
        self.assertAlmostEqual(flat.lr_at(1000), 0.05)

    def test_tensorboard_is_said_to_be_missing(self):
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            with self.assertRaisesRegex(UserError, "not installed"):
                self.make(tensorboard=self.folder / "board").run()
        else:
            self.make(num_steps=2, tensorboard=self.folder / "board").run()
            self.assertTrue(list((self.folder / "board").iterdir()))

    def test_bfloat16_learns_too(self):
        run = self.make(num_steps=12, noisy=False)
        object.__setattr__(run.config, "dtype", "bfloat16")
        run.run()
        rows = curve(self.folder / "a")
        self.assertLess(rows[-1]["dev_loss"], rows[0]["dev_loss"])


class ProcessesTest(TempTest):
    def run_two(self, kind):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [start(self.folder / kind, 6, kind, {
            "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
            for rank in range(2)]
        for process in processes:
            _, errors = process.communicate(timeout=100)
            self.assertEqual(process.returncode, 0, errors)
        return curve(self.folder / kind)

    def assert_two_equal_one(self, kind):
        run = self.make("one", 6, micro_rows=2, noisy=False)
        run.run()
        alone, together = curve(self.folder / "one"), self.run_two(kind)
        self.assertEqual(len(together), 7)
        for a, b in zip(alone, together):
            self.assertEqual(a.keys(), b.keys())
            for name in a:
                self.assertAlmostEqual(a[name], b[name], places=4, msg=name)
        state = torch.load(self.folder / kind / "student.pt")
        for name, tensor in run.student_state().items():
            torch.testing.assert_close(
                state[name], tensor, rtol=1e-3, atol=2e-5)

    def test_two_processes_of_ddp_equal_one(self):
        self.assert_two_equal_one("ddp")

    @unittest.skipIf(distributed.fsdp_problem(), distributed.fsdp_problem())
    def test_two_processes_of_fsdp_equal_one(self):
        self.assert_two_equal_one("fsdp")

    def test_without_torchrun_it_is_said(self):
        with self.assertRaisesRegex(UserError, "torchrun"):
            distributed.Processes("ddp")


if __name__ == "__main__":
    unittest.main()
