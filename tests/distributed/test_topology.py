"""What joins GPUs, told without one: NVML's links, with no speed invented, and peers of one host alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serveproof.distributed.direct import direct_sum, peers_reach_each_other
from serveproof.distributed.group import Ranks
from serveproof.distributed.topology import links_of
from serveproof.engine.parallel import Group


class NoAnswer(Exception):
    """NVML's error."""


def library(active: int, common: int, per_link: int, version: int | None) -> Any:
    def state(_: object, link: int) -> int:
        if link >= 12:
            raise NoAnswer
        return int(link < active)

    def fields(_: object, asked: list[Any]) -> list[Any]:
        number = common if asked == ["common"] else per_link
        return [SimpleNamespace(nvmlReturn=0 if number else 3, value=SimpleNamespace(uiVal=number))]

    def link_version(_: object, link: int) -> int:
        if version is None:
            raise NoAnswer
        return version

    return SimpleNamespace(
        NVMLError=NoAnswer, NVML_NVLINK_MAX_LINKS=18, NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON="common",
        NVML_FI_DEV_NVLINK_GET_SPEED="one", nvmlDeviceGetNvLinkState=state, nvmlDeviceGetFieldValues=fields,
        nvmlDeviceGetNvLinkVersion=link_version,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (library(10, 26562, 0, 4), (10, 10 * 26562e6)),
        (library(10, 0, 25000, 4), (10, 10 * 25000e6)),
        (library(10, 0, 0, 4), (10, 10 * 26562e6)),
        (library(10, 0, 0, None), (10, None)),
        (library(10, 0, 0, 9), (10, None)),
        (library(0, 26562, 0, 4), (0, None)),
    ],
)
def test_links_and_their_speed(made: Any, expected: tuple[int, float | None]) -> None:
    active, rate = links_of(made, None)
    assert (active, rate) == (expected[0], None if expected[1] is None else pytest.approx(expected[1]))


def test_gpus_of_several_hosts_are_no_peers() -> None:
    """Told without asking a driver, and before anything is mapped."""
    ranks = Ranks(Group(0, 2), torch.device("cuda", 0), "nccl", local=0, local_world=1, config_sha="", store=None)
    assert ranks.nodes == 2
    assert "several machines" in peers_reach_each_other(ranks)
    assert direct_sum(ranks, torch.bfloat16) == (None, f"all-reduce by nccl: {peers_reach_each_other(ranks)}")
