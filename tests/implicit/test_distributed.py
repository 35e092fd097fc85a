"""DistributedDataParallel on two gloo processes."""

import os
import subprocess
import sys
from pathlib import Path


def test_gradients_and_weights_are_those_of_one_process_on_the_joined_batch():
    script = Path(__file__).with_name("distributed_training.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "equal" in run.stdout
