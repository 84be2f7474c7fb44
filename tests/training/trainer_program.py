"""A training run of a tiny pair, for tests that kill it: see test_trainer.

    python3 -m tests.training.trainer_program FOLDER NUM_STEPS [KIND]
"""

import pathlib
import sys

import torch

from training import distributed, trainer, two_stage
from training.model import Llama, ModelConfig, init_weights

VOCAB = 30
ROWS_PER_STEP = 8


def tiny(seed, width):
    model = Llama(ModelConfig(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=24,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8))
    init_weights(model, seed)
    return model


def row_of(step, index):
    """Ragged rows that ask for a copy of the prompt."""
    generator = torch.Generator().manual_seed(1000 * step + index)
    size = int(torch.randint(2, 7, (1,), generator=generator))
    prompt = torch.randint(2, VOCAB, (size,), generator=generator).tolist()
    return prompt + [1] + prompt, size + 1


def batch_of(step, indices):
    rows = [row_of(step, index) for index in indices]
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for at, (row, _) in enumerate(rows):
        ids[at, :len(row)] = torch.tensor(row)
    return two_stage.Batch(
        ids, torch.arange(width).repeat(len(rows), 1),
        [two_stage.Answer(at, start, len(row) - start)
         for at, (row, start) in enumerate(rows)])


class Noisy(two_stage.TwoStage):
    """Draws from torch's generator, as dropout would."""

    def __call__(self, student, batch):
        sums = super().__call__(student, batch)
        return sums._replace(loss=sums.loss * (0.9 + 0.2 * torch.rand(())))


def make_trainer(folder, num_steps, processes=None, micro_rows=4, noisy=True,
                 lr=3e-3, log=None, **options):
    processes = processes or distributed.Processes()
    accumulation = ROWS_PER_STEP // micro_rows // processes.world

    def batch_at(step, micro, rank):
        begin = (micro * processes.world + rank) * micro_rows
        return batch_of(step, range(begin, begin + micro_rows))

    objective = (Noisy if noisy else two_stage.TwoStage)(
        tiny(1, 20), two_stage.LossWeights(1.0, 0.5))
    dev = [batch_of(10 ** 6 + index, range(2 + index)) for index in range(3)]
    return trainer.Trainer(
        two_stage.Student(tiny(2, 12)), objective, batch_at,
        trainer.TrainerConfig(
            num_steps=num_steps, accumulation=accumulation, peak_lr=lr,
            warmup_share=0.1, save_steps=3, dev_steps=5, log_steps=1),
        folder=folder / "run", metrics=folder / "metrics.csv", dev=dev,
        processes=processes, log=log, **options)


def main():
    folder, num_steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    kind = sys.argv[3] if len(sys.argv) > 3 else "none"
    torch.set_num_threads(1)
    processes = distributed.Processes(kind)
    run = make_trainer(folder, num_steps, processes, micro_rows=2,
                       noisy=kind == "none")
    outcome = run.run()
    state = run.student_state()
    if processes.rank == 0:
        torch.save(state, folder / "student.pt")
        print("finished" if outcome.finished else "stopped", outcome.step)
    processes.close()


if __name__ == "__main__":
    main()
