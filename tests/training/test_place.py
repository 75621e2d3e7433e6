"""Who started this process, by environments as the launchers leave them."""

from __future__ import annotations

import os

import pytest

from shards.errors import UsageError
from training.place import Place, first_host, master_of, place_of
from training.processes import processes_here, world_size

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip
SBATCH = {  # the shell that runs the batch script of two tasks on each of two machines
    "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "2",
}  # fmt: skip
SRUN = SBATCH | {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "6", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
NUMBERS = ("rank", "size", "local_rank", "local_size")


@pytest.mark.parametrize(
    ("environment", "launcher", "numbers"),
    [
        (TORCHRUN, "torchrun", (5, 8, 1, 4)),
        (TORCHRUN | {"IMAGENET_RESNET_LAUNCHER": "17"}, "resnet", (5, 8, 1, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "torchrun", (0, 1, 0, 1)),
        (SRUN, "srun", (3, 4, 1, 2)),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1,3", "SLURM_LOCALID": "2"}, "srun", (3, 4, 2, 3)),
        (SRUN | {"PMI_RANK": "3", "PMI_SIZE": "4"}, "srun", (3, 4, 1, 2)),
        (OPEN_MPI, "Open MPI's mpirun", (1, 2, 1, 2)),
        (SBATCH | OPEN_MPI, "Open MPI's mpirun", (1, 2, 1, 2)),
        (HYDRA, "mpiexec", (2, 6, 0, 2)),
        (SRUN | TORCHRUN, "torchrun", (5, 8, 1, 4)),
    ],
)
def test_a_launcher_is_known_by_its_variables(
    environment: dict[str, str], launcher: str, numbers: tuple[int, ...]
) -> None:
    place = place_of(environment)
    assert place is not None
    assert (place.launcher, *(getattr(place, name) for name in NUMBERS)) == (launcher, *numbers)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SBATCH,
        SBATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # salloc's shell
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"},
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_RANK": "0", "PMI_SIZE": "1", "MPI_LOCALRANKID": "0"},
        {"RANK": "0"},
    ],
    ids=["shell", "sbatch", "salloc", "one task", "mpirun of one", "mpiexec of one", "half"],
)
def test_a_shell_and_a_process_alone_start_their_own(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place_of(environment) is None
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes_here("cpu", None, 3) == 3
    assert world_size(3, 2) == 6


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "3", "WORLD_SIZE": "2"}, "RANK 3 and WORLD_SIZE 2"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "whole numbers, as torchrun"),
        (SRUN | {"SLURM_PROCID": "4"}, "SLURM_PROCID 4 and SLURM_STEP_NUM_TASKS 4"),
        (SRUN | {"SLURM_NODEID": "x", "SLURM_LOCALID": ""}, "whole numbers, as srun"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "-1"}, "OMPI_COMM_WORLD_RANK -1"),
    ],
)
def test_nonsensical_variables_are_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        place_of(environment)


def met(environment: dict[str, str]) -> tuple[str, int]:
    place = place_of(environment)
    assert place is not None
    return master_of(place, environment)


def test_process_0_is_met_where_the_environment_says() -> None:
    assert met(TORCHRUN) == ("node0", 29500)
    assert met(OPEN_MPI | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == ("a", 1)


def test_under_slurm_it_is_met_on_the_first_machine_at_a_port_of_the_step() -> None:
    host, port = met(SRUN)
    assert host == "gpu07"
    assert 15000 <= port < 30000
    assert {met(SRUN | {"SLURM_PROCID": str(rank)}) for rank in range(4)} == {(host, port)}
    assert met(SRUN | {"SLURM_STEP_ID": "1"}) != (host, port)
    assert met(SRUN | {"SLURM_JOB_ID": "42"}) != (host, port)
    bare = {name: value for name, value in SRUN.items() if "NODELIST" not in name}
    assert met(bare) == ("10.0.0.1", port)


def test_processes_of_one_machine_meet_there() -> None:
    assert met(OPEN_MPI) == ("127.0.0.1", 15000 + os.getppid() % 15000)
    one = SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"}
    assert met(one)[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (HYDRA, "mpiexec started 6 processes, .* set MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "set MASTER_ADDR"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT 70000"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT http"),
    ],
)
def test_where_nobody_knows_what_to_set_is_said(environment: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        met(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("gpu[007-010,12],cpu3", "gpu007"),
        ("a,b[1-2]", "a"),
        ("r[1-2]n[03,05]", "r1n03"),
        ("", ""),
    ],
)
def test_the_first_of_slurms_machines(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_another_number_than_the_launcher_started_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in OPEN_MPI.items():
        monkeypatch.setenv(name, value)
    assert processes_here("cpu", None, 2) == processes_here("auto", 4, None) == 2
    assert world_size(2, 1) == 2
    with pytest.raises(UsageError, match="--nproc 3: Open MPI's mpirun has started 2 here"):
        processes_here("cpu", None, 3)


def test_a_place_tells_processes_apart() -> None:
    assert place_of(SRUN) == Place(launcher="srun", rank=3, size=4, local_rank=1, local_size=2)
