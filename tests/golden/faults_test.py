"""The comparisons of pair_test.py with a fault planted at the handoff.

Each must fail, by the tokens, by the logits and, where KV is copied or handed
over unchanged, by its digest: a test that cannot fail shows nothing.
"""

import golden_case
import reference
from golden_case import (FAULTS, LOGIT_TOLERANCE, MAX_STEP_ROWS, PairCase,
                         random_llama)


class FaultsTest(PairCase):

    def check_faults(self, copy=False, faults=tuple(FAULTS)):
        prompts = self.prompts(3)
        requests = golden_case.requests_of(prompts, self.answers(prompts, 24))
        runs = [{"path": "two_stage", "max_tokens": 24, "fault": fault,
                 "max_step_rows": MAX_STEP_ROWS,
                 "schedule_seed": self.schedule(), "requests": requests}
                for fault in ("none",) + tuple(faults)]
        for precision in LOGIT_TOLERANCE:
            outcome = self.run_pair(precision, runs, copy=copy)
            for run, got in zip(runs, outcome):
                with self.subTest(fault=run["fault"], precision=precision):
                    self.check_run(precision, run, got)

    def check_run(self, precision, run, got):
        check, fault = reference.AnswerCheck(), run["fault"]
        worst = self.compare(precision, run, got, check)
        self.report(f"{precision}, {fault}: {len(check.errors)} of "
                    f"{check.num_tokens} tokens wrong, max relative error "
                    f"{worst:.1e}")
        wrong = [check.errors != [], worst > LOGIT_TOLERANCE[precision]]
        if self.kv_map.maps is None:
            wrong.append(got.prefilled != got.decoded)
        self.assertEqual(wrong, [fault != "none"] * len(wrong))

    def test_identity(self):
        self.make_pair(random_llama(self.rng))
        self.check_faults()

    def test_identity_copied(self):
        self.make_pair(random_llama(self.rng))
        # The pruned model reads token 0's prompt in a store that both share.
        self.check_faults(copy=True, faults=[
            fault for fault in FAULTS if fault != "first_token_by_decode"])

    def test_layers(self):
        self.make_pair(random_llama(self.rng), "layers", layers=2)
        self.check_faults()

    def test_projection(self):
        self.make_pair(random_llama(self.rng), "projection", layers=2)
        self.check_faults(faults=[
            fault for fault in FAULTS if fault != "first_token_by_decode"])


if __name__ == "__main__":
    golden_case.main()
