"""The virtual machine itself: the kernel it has and this one may lack."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mesh import check_kernel, detect_balancer

pytestmark = pytest.mark.vm


def test_the_guest_has_all_that_the_data_plane_uses() -> None:
    assert socket.gethostname() == "guest"
    assert detect_balancer() == "ipvs"
    assert Path("/proc/net/ip_vs").read_text().startswith("IP Virtual Server")
    assert check_kernel() == []
