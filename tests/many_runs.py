"""Runs train.py with several sets of flags, one after the other, in the same ranks: starting them takes seconds.

torchrun --nproc-per-node=2 tests/many_runs.py RUNS.json

RUNS.json: {name: [flags]}. RUNS.json.RANK gets [names that ended well]. A run that fails ends all of them. Before the
run "NAME again", the output folder of the run NAME is copied as it was when it was killed after step 3.
"""

import atexit
import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import pytest  # noqa: E402
import torch.distributed as dist  # noqa: E402

import train  # noqa: E402
from util.distributed import leave_process_group  # noqa: E402

done: list[str] = []
for name, flags in json.loads(Path(sys.argv[1]).read_text()).items():
    out = flags[flags.index("--output_dir") + 1]
    if name.endswith(" again") and os.environ["RANK"] == "0":
        leave = shutil.ignore_patterns("all_results.json", "step-00000004", "runs")
        shutil.copytree(out.removesuffix(".again"), out, ignore=leave)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", *flags])
        train.main()
    done.append(name)
    Path(f"{sys.argv[1]}.{os.environ['RANK']}").write_text(json.dumps(done))
    if dist.is_initialized():
        atexit.unregister(leave_process_group)
        leave_process_group()
