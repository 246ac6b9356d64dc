"""Many connections over one: order, windows, ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from orchestrator.dispatcher.multiplex import WINDOW_BYTES, Stream, Trunk
from orchestrator.errors import RemoteProtocolError

from .lab import until
from .pair import Pair, peer


class Trunks:
    """Both ends; `opened`: the streams as the dialled side has them."""

    def __init__(self) -> None:
        self.opened: list[Stream] = []
        self.near_wire, self.far_wire = Pair.both()
        self.near, self.far = Trunk(self.near_wire), Trunk(self.far_wire, on_open=self.opened.append)

    async def open(self, name: str) -> tuple[Stream, Stream]:
        stream = await self.near.open(peer(name))
        await until(lambda: self.opened and self.opened[-1].peer.node_id == name)
        return stream, self.opened[-1]


@pytest.fixture
async def trunks() -> AsyncIterator[Trunks]:
    made = Trunks()
    running = [asyncio.create_task(trunk.run()) for trunk in (made.near, made.far)]
    await until(lambda: made.near.ready)
    yield made
    await made.near.close()
    await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.parametrize("seed", range(4))
async def test_everything_arrives_in_order_on_every_stream_and_then_the_end(trunks: Trunks, seed: int) -> None:
    rng = random.Random(seed)
    streams = [end for number in range(5) for end in await trunks.open(f"w{number}")]
    sent = [[rng.randbytes(rng.choice((1, 100, 30_000, WINDOW_BYTES + 1))) for _ in range(rng.randint(0, 30))] for _ in streams]

    async def speak(stream: Stream, messages: list[bytes]) -> None:
        for message in messages:
            await stream.send(message)
            if rng.random() < 0.2:
                await asyncio.sleep(0)

    async def hear(stream: Stream, count: int) -> list[bytes | None]:
        return [await stream.receive(10) for _ in range(count)]

    # the two ends of a stream lie side by side
    others = [streams[index ^ 1] for index in range(len(streams))]
    speaking = [asyncio.create_task(speak(*pair)) for pair in zip(streams, sent, strict=True)]
    heard = await asyncio.gather(*(hear(other, len(messages)) for other, messages in zip(others, sent, strict=True)))
    assert heard == sent
    await asyncio.gather(*speaking)
    for near, far in zip(streams[::2], streams[1::2], strict=True):
        # what was taken is told with the wish for more
        heard_last, _ = await asyncio.gather(near.receive(10), far.send(b"last words"))
        assert heard_last == b"last words"
        await far.send(b"and one more")
        await far.close(4321, "because")
        assert await near.receive(10) == b"and one more"
        assert await near.receive(10) is None
        assert (near.closed, near.close_code, near.close_reason) == (True, 4321, "because")
        with pytest.raises(ConnectionError):
            await near.send(b"too late")
        await near.close()


async def test_who_does_not_take_what_is_sent_holds_up_only_itself(trunks: Trunks) -> None:
    slow, (near, far) = await trunks.open("slow"), await trunks.open("quick")
    sent = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            while True:
                await slow[1].send(bytes(10_000))
                sent += 10_000
    assert WINDOW_BYTES <= sent < WINDOW_BYTES + 10_000
    for _ in range(100):
        await far.send(bytes(10_000))
        assert await near.receive(10) == bytes(10_000)
    for _ in range(sent // 10_000):
        await slow[0].receive(10)
    with contextlib.suppress(TimeoutError):
        # to be told what was taken, the sender needs its peer to wait for more
        await slow[0].receive(0.01)
    async with asyncio.timeout(10):
        await slow[1].send(b"more")


async def test_with_the_trunk_all_streams_end_and_nobody_says_why(trunks: Trunks) -> None:
    near, far = await trunks.open("w1")
    waiting = asyncio.create_task(near.receive(10))
    await trunks.far.close()
    assert await waiting is None
    await until(lambda: far.closed)
    assert (near.closed, near.close_code) == (True, None)
    with pytest.raises(ConnectionError):
        await trunks.near.open(peer("w2"))


async def test_what_is_no_frame_ends_the_trunk() -> None:
    for frame in (b"\xc1", b"\x80"):
        near, far = Pair.both()
        trunk = Trunk(near)
        await far.send(frame)
        with pytest.raises(RemoteProtocolError, match="can't be read"):
            await trunk.run()
    near, far = Pair.both()
    dialled = Trunk(far, on_open=lambda stream: None)
    running = asyncio.create_task(dialled.run())
    trunk = Trunk(near)
    other = asyncio.create_task(trunk.run())
    await until(lambda: trunk.ready)
    with pytest.raises(ConnectionError):
        await dialled.open(peer("w1"))
    await near.close()
    await asyncio.gather(running, other)
