"""train.py, whose collectives wait for seconds where it waits for half an hour: tests/impatient.py SECONDS [flags]"""

import sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import train  # noqa: E402

train.TIMEOUT = timedelta(seconds=float(sys.argv.pop(1)))
train.record(train.main)()
