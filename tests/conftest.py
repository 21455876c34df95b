"""One thread for each of pytest's processes: the networks are tiny, and threads would only wait for one another."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
