"""What two hosts send each other a step, and what a slower link costs: network namespaces, as root.

python tests/benchmarks/hosts.py [--rates 10gbit 1gbit 200mbit] [flags of train.py]

For each speed of the link (tc's names; "free" sets none): tokens a second of DDP and of --fsdp on two ranks of one
thread each, and the bytes of a step, from two runs of different length, so that what is sent once falls out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import test_hosts as hosts  # noqa: E402

STEPS = 10, 30
TRAIN = str(hosts.ROOT / "train.py")


def sent(name: str) -> int:
    """Bytes that left this host so far."""
    path = "/sys/class/net/card/statistics/tx_bytes"
    return int(subprocess.check_output(["ip", "netns", "exec", name, "unshare", "--mount", "cat", path], text=True))


def measured(link, folder: Path, flags: list[str]) -> tuple[float, float]:
    """Tokens a second of the longer run, and the bytes that each host sent a step."""
    counts = []
    for steps in STEPS:
        before = [sent(name) for name in link]
        command = hosts.torchrun(TRAIN, *flags, "--benchmark", steps)
        done = hosts.finish(hosts.start(link, folder, *command), link, folder, 1000)
        assert [code for code, _ in done] == [0, 0], done
        counts.append(statistics.mean(sent(name) - b for name, b in zip(link, before)))
        lines = [line for _, said in done for line in said.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])["tokens_per_second"], (counts[1] - counts[0]) / (STEPS[1] - STEPS[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=["free", "1gbit", "200mbit"])
    args, flags = parser.parse_known_args()
    print("| link | DDP, tokens/s | MB sent a step and host | --fsdp, tokens/s | MB sent a step and host |")
    print("| --- | --- | --- | --- | --- |")
    with hosts.two_hosts() as link, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shared").mkdir()
        for rate in args.rates:
            for name in link if rate != "free" else []:
                limit = ["rate", rate, "burst", "256kb", "latency", "100ms"]
                command = ["ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", "card", "root", "tbf", *limit]
                subprocess.run(command, check=True)
            cells = []
            for more in ([], ["--fsdp"]):
                speed, size = measured(link, Path(folder), [*flags, *more])
                cells.append(f"{speed:,.0f} | {size / 1e6:,.1f}")
            print(f"| {rate} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
