"""train.py with a collective timeout of SECONDS instead of half an hour: python tests/impatient.py SECONDS [flags]"""

import sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import train  # noqa: E402

train.COLLECTIVE_TIMEOUT = timedelta(seconds=float(sys.argv.pop(1)))
train.record(train.main)()
