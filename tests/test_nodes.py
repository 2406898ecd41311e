"""Several nodes: two torchrun agents of one rank each that meet by c10d rendezvous."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import flat, results, run, train, weights


@pytest.mark.slow  # test_hosts.py tests more, but needs root
def test_two_agents_finish_with_the_result_of_one(still, corpus, tmp_path):
    """As on hosts without a shared disk, each has its output folder. Only that of rank 0 is written."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [*flat(corpus), "--model_name_or_path", still, "--precision", "fp32", "--max_steps", 6, "--eval_steps", 3]
    meet = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    launch = ["-m", "torch.distributed.run", *meet, "--rdzv-id=test", "train.py", *flags]

    def agent(name: str):
        return run(*launch, "--per_device_train_batch_size", 4, "--output_dir", tmp_path / name)

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(agent, ("a", "b")))
    assert [agent.returncode for agent in done] == [0, 0], done[0].stderr + done[1].stderr
    written = [name for name in ("a", "b") if (tmp_path / name / "all_results.json").exists()]
    assert len(written) == 1
    assert results(tmp_path / written[0])["world_size"] == 2
    train(*flags, "--per_device_train_batch_size", 8, "--output_dir", tmp_path / "one")
    one, two = weights(tmp_path / "one"), weights(tmp_path / written[0])
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    assert results(tmp_path / "one")["eval_per_entity"] == results(tmp_path / written[0])["eval_per_entity"]
