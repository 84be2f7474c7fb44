"""Makes pairs: prunes, distils, imports. demo/ is of the bundled pair."""

import os

# oneDNN 2.6, which Debian's torch uses, has AMX kernels that end the program
# with an illegal instruction for some shapes. It reads this at its first use.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
