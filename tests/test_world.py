"""Which rank a process is, from what torchrun and srun tell it, and what contradicts the configuration."""

from collections.abc import Mapping

import pytest

import dpolish
from dpolish.config.compose import Composed
from dpolish.errors import ConfigError
from dpolish.world import ALONE, World, first_host, ranks_to_start, world_of


def composed(*overrides: str) -> Composed:
    return dpolish.compose(overrides=list(overrides), model="m", train=["t.jsonl"], output="o", environ={})


def torchrun(rank: int, size: int, local: int | None = None, on_node: int | None = None) -> dict[str, str]:
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank if local is None else local}
    return {name: str(value) for name, value in {**names, "LOCAL_WORLD_SIZE": on_node or size}.items()}


def srun(rank: int, size: int, nodes: int, **more: str) -> dict[str, str]:
    on_node = size // nodes
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % on_node),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_TASKS_PER_NODE": f"{on_node}(x{nodes})" if nodes > 1 else str(on_node),
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": "123",
        "SLURM_STEP_NODELIST": "localhost",
        **more,
    }


def test_a_process_alone_is_the_only_rank() -> None:
    assert world_of(composed(), {}) == ALONE
    assert ranks_to_start(composed(), {}) == 0


@pytest.mark.parametrize(("devices", "count"), [("2", 2), ("[0,1,2]", 3), ("1", 0)])
def test_a_plain_terminal_starts_as_many_ranks_as_there_are_devices(devices: str, count: int) -> None:
    asked = composed(f"trainer.devices={devices}", "trainer.accelerator=cpu")
    assert ranks_to_start(asked, {}) == count


@pytest.mark.parametrize("devices", ["auto", "-1"])
def test_every_device_of_a_cpu_is_one(devices: str) -> None:
    assert ranks_to_start(composed(f"trainer.devices={devices}", "trainer.accelerator=cpu"), {}) == 0


def test_several_nodes_are_not_started_from_one() -> None:
    with pytest.raises(ConfigError, match=r"num_nodes=4.*srun"):
        ranks_to_start(composed("trainer.num_nodes=4", "trainer.devices=8"), {})


def test_a_library_call_does_not_start_ranks() -> None:
    with pytest.raises(ConfigError, match=r"devices=2 asks for 2 ranks, and this process is one"):
        world_of(composed("trainer.devices=2"), {})


def test_torchrun_says_which_rank() -> None:
    world = world_of(composed("trainer.devices=2", "trainer.num_nodes=2"), torchrun(3, 4, 1, 2))
    assert world == World(3, 4, 1, 2, None, "torchrun")
    assert world.num_nodes == 2


def test_ranks_that_nobody_asked_for_are_taken_as_they_are() -> None:
    assert world_of(composed(), torchrun(1, 4)) == World(1, 4, 1, 4, None, "torchrun")
    assert world_of(composed("trainer.devices=auto"), torchrun(1, 4)).size == 4


def test_ranks_are_not_started_twice() -> None:
    assert ranks_to_start(composed("trainer.devices=4"), torchrun(1, 4)) == 0


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (torchrun(0, 4), "torchrun started 4: 1 nodes × 4 (WORLD_SIZE=4, LOCAL_WORLD_SIZE=4)"),
        (srun(0, 4, 2), "srun started 4: 2 nodes × 2 (SLURM_STEP_NUM_TASKS=4, 2 of them on this node)"),
    ],
)
def test_contradictions_name_both_numbers(environ: Mapping[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        world_of(composed("trainer.num_nodes=2", "trainer.devices=8"), environ)
    assert "asks for 16 ranks" in str(error.value)
    assert said in str(error.value)


def test_srun_says_which_rank_and_where_to_meet() -> None:
    world = world_of(composed("trainer.num_nodes=2", "trainer.devices=2"), srun(3, 4, 2))
    assert world == World(3, 4, 1, 2, ("localhost", 20_861), "srun")
    chosen = srun(3, 4, 2, MASTER_ADDR="10.0.0.1", MASTER_PORT="1234")
    assert world_of(composed("trainer.num_nodes=2", "trainer.devices=2"), chosen).master == ("10.0.0.1", 1234)


def test_steps_of_one_job_meet_at_different_ports() -> None:
    asked = composed("trainer.num_nodes=2", "trainer.devices=1")
    assert world_of(asked, srun(0, 2, 2)).master != world_of(asked, srun(0, 2, 2, SLURM_STEP_ID="1")).master


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "1"},  # the batch script itself
        srun(0, 1, 1, SLURM_STEP_ID="4294967290"),  # the shell that salloc gives
        srun(0, 1, 1),
    ],
)
def test_a_shell_inside_a_job_is_a_plain_terminal(environ: Mapping[str, str]) -> None:
    assert ranks_to_start(composed("trainer.devices=2"), environ) == 2


def test_nodes_with_different_numbers_of_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        world_of(composed(), srun(0, 3, 1, SLURM_STEP_TASKS_PER_NODE="2,1"))


def test_torchrun_with_different_numbers_of_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"2 of 5 ranks on this node.*--nproc-per-node"):
        world_of(composed(), torchrun(0, 5, 0, 2))


@pytest.mark.parametrize("value", ["", "one", "-1"])
def test_a_broken_environment_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        world_of(composed(), {"RANK": "0", "WORLD_SIZE": value})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("gpu[007-010,12],x", "gpu007"), ("a,b", "a"), ("r-1-n[03]", "r-1-n03")],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
