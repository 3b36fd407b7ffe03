"""`nemo-sdg run` through an executor of NeMo-Run: on this machine, in a container, or as a Slurm job.

    python examples/04_launch_with_nemo_run.py local tiny demo
    python examples/04_launch_with_nemo_run.py slurm nemotron4_340b /shared/runs/mine --dryrun

Change the numbers below for your site. A Slurm job ends by itself before its time is over (run.stop_after) and is queued
again by NeMo-Run's own script, `retries` times at most. That script does not tell a run that has stopped from one that has
failed, and its torchrun would die of a signal USR1; examples/slurm/ is better at both.
"""

from __future__ import annotations

import argparse

import nemo_run as run

IMAGE = "nemo-sdg:latest"
"""Made by examples/container/Dockerfile."""
SHARED = ["/shared:/shared"]
"""Where the run, the models and your files lie, on every node the same."""


def executor(kind: str, nodes: int, ranks: int) -> run.Executor:
    """Where it runs: local, docker or slurm, with so many ranks on each node."""
    settings = {"NCCL_DEBUG": "WARN", "OMP_NUM_THREADS": "1"}
    if kind == "local":
        return run.LocalExecutor(ntasks_per_node=ranks, launcher="torchrun", env_vars=settings)
    if kind == "docker":
        return run.DockerExecutor(
            container_image=IMAGE, num_gpus=ranks, ntasks_per_node=ranks, volumes=SHARED, launcher="torchrun",
            env_vars=settings, shm_size="16g", runtime="nvidia", packager=run.Packager(),
        )  # fmt: skip
    return run.SlurmExecutor(
        account="account", partition="batch", time="04:00:00", nodes=nodes, ntasks_per_node=1, gpus_per_node=ranks,
        torchrun_nproc_per_node=ranks, launcher="torchrun", exclusive=True, retries=20,
        container_image=IMAGE, container_mounts=SHARED, env_vars=settings, packager=run.Packager(),
        tunnel=run.LocalTunnel(job_dir="/shared/nemo_run"),  # or run.SSHTunnel(host=..., user=..., job_dir=...)
    )  # fmt: skip


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("kind", choices=("local", "docker", "slurm"))
    words.add_argument("recipe")
    words.add_argument("out")
    words.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    words.add_argument("--nodes", type=int, default=1)
    words.add_argument("--ranks", type=int, default=2, help="on each node")
    words.add_argument("--dryrun", action="store_true", help="show what would be started")
    given = words.parse_args()
    in_time = ["run.stop_after=3h50m"] if given.kind == "slurm" else []
    command = ["run", given.recipe, *in_time, *given.settings, "--out", given.out]
    task = run.Script("nemo_sdg", m=True, entrypoint="python", args=command)
    with run.Experiment("nemo-sdg", executor=executor(given.kind, given.nodes, given.ranks)) as experiment:
        experiment.add(task, name="run", tail_logs=True)
        experiment.dryrun() if given.dryrun else experiment.run(tail_logs=True)


if __name__ == "__main__":
    main()
