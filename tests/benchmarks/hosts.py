"""What two hosts send each other in a step, and the cost of a slower link: network namespaces, as root.

python tests/benchmarks/hosts.py [--rates 10gbit 1gbit 200mbit] [flags of train.py]

For each speed of the link (in tc's notation; "free" sets no limit): tokens per second of DDP and of --fsdp on two
ranks of one thread each, and the bytes that a step sends. The bytes are the difference of two runs of different
length, so that what is sent once per run does not count.
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

NUM_STEPS = 10, 30  # of the two runs
TRAIN = str(hosts.ROOT / "train.py")


def bytes_sent(host: str) -> int:
    """Bytes that left this host so far."""
    path = "/sys/class/net/card/statistics/tx_bytes"
    return int(subprocess.check_output(["ip", "netns", "exec", host, "unshare", "--mount", "cat", path], text=True))


def limit_rate(host: str, rate: str) -> None:
    limit = ["rate", rate, "burst", "256kb", "latency", "100ms"]
    command = ["ip", "netns", "exec", host, "tc", "qdisc", "replace", "dev", "card", "root", "tbf", *limit]
    subprocess.run(command, check=True)


def measure(link, folder: Path, flags: list[str]) -> tuple[float, float]:
    """Tokens per second of the longer run, and the bytes that each host sent per step."""
    sent, figures = [], {}
    for num_steps in NUM_STEPS:
        before = [bytes_sent(host) for host in link]
        command = hosts.torchrun(TRAIN, *flags, "--benchmark", num_steps)
        outputs = hosts.finish(hosts.start(link, folder, *command), link, folder, 1000)
        assert [code for code, _ in outputs] == [0, 0], outputs
        sent.append(statistics.mean(bytes_sent(host) - start for host, start in zip(link, before)))
        for _, output in outputs:
            for line in output.splitlines():
                if line.startswith("{"):
                    figures = json.loads(line)
    bytes_per_step = (sent[1] - sent[0]) / (NUM_STEPS[1] - NUM_STEPS[0])
    return figures["tokens_per_second"], bytes_per_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=["free", "1gbit", "200mbit"])
    args, flags = parser.parse_known_args()
    print("| link | DDP, tokens/s | MB sent per step and host | --fsdp, tokens/s | MB sent per step and host |")
    print("| --- | --- | --- | --- | --- |")
    with hosts.two_hosts() as link, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "shared").mkdir()
        for rate in args.rates:
            if rate != "free":
                for host in link:
                    limit_rate(host, rate)
            cells = []
            for fsdp in ([], ["--fsdp"]):
                tokens_per_second, bytes_per_step = measure(link, Path(folder), [*flags, *fsdp])
                cells.append(f"{tokens_per_second:,.0f} | {bytes_per_step / 1e6:,.1f}")
            print(f"| {rate} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
