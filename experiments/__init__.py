"""The paper's experiments, repeated: ``python -m experiments NAME --out docs/results``."""

import os

# threads that wait without spinning: on a busy machine small steps take a fifth of the time
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded
