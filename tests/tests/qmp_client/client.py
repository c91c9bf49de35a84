"""A program that controls a machine with the library that QEMU's project publishes for that (qemu.qmp).

Arguments: the socket that the machine listens on, and the one that it connects to. It says 'listening' when it may be started, and ends
with the machine. Whatever is not as QEMU's clients expect it ends it with an exception.
"""

import asyncio
import sys

from qemu.qmp import EventListener, ExecuteError, QMPClient

# What a machine without these things answers; everything else has to succeed.
REFUSED = {"query-balloon": "DeviceNotActive", "query-hotpluggable-cpus": "GenericError"}


async def refusal(client, command, arguments=None):
    try:
        await client.execute(command, arguments)
    except ExecuteError as error:
        assert str(error), command
        return error.error_class
    raise AssertionError(f"{command} {arguments} has succeeded")


async def event(events, name):
    while True:
        message = await asyncio.wait_for(events.get(), 60)
        if message["event"] == name:
            return message.get("data")


async def connect(path):
    client = QMPClient("the machine listens")
    for _ in range(600):
        try:
            await client.connect(path)
            return client
        except Exception:
            await asyncio.sleep(0.05)
    raise AssertionError(f"nobody listens on {path}")


async def queries(client):
    """Every query that needs no argument is answered, and the schema knows all that it has."""
    names = {command["name"] for command in await client.execute("query-commands")}
    schema = {entry["name"]: entry for entry in await client.execute("query-qmp-schema")}
    assert names == {name for name, entry in schema.items() if entry["meta-type"] == "command"}
    asked = 0
    for name in sorted(name for name in names if name.startswith("query-")):
        members = schema[schema[name]["arg-type"]]["members"]
        if any("default" not in member for member in members):
            continue
        if name in REFUSED:
            assert await refusal(client, name) == REFUSED[name], name
        else:
            await client.execute(name)
        asked += 1
    assert asked > 30, asked
    assert (await client.execute("query-name"))["name"] == "horus"
    disk = (await client.execute("query-block"))[0]
    assert (disk["device"], disk["inserted"]["drv"]) == ("drive1", "raw"), disk


async def errors(client):
    assert await refusal(client, "no-such-command") == "CommandNotFound"
    assert await refusal(client, "set_link", {"name": "nothing", "up": True}) == "DeviceNotFound"
    for wrong in [{}, {"name": 1, "up": True}, {"name": "x", "up": True, "more": 1}]:
        assert await refusal(client, "set_link", wrong) == "GenericError", wrong
    assert await refusal(client, "qmp_capabilities") == "CommandNotFound"
    # The library waits for the answer of each by its id, whatever order they come in.
    several = [client.execute("query-status"), refusal(client, "nonsense"), client.execute("query-version")] * 20
    for status, refused, version in zip(*[iter(await asyncio.gather(*several))] * 3):
        assert status["running"] and refused == "CommandNotFound" and version["qemu"]["major"] >= 7


async def life(clients):
    """What is done to the machine by one is heard of by all."""
    with_events = [EventListener() for _ in clients]
    for client, events in zip(clients, with_events):
        client.register_listener(events)
    for command, name in [("stop", "STOP"), ("cont", "RESUME"), ("system_reset", "RESET"), ("system_powerdown", "POWERDOWN")]:
        assert await clients[0].execute(command) == {}
        for events in with_events:
            data = await event(events, name)
            assert name != "RESET" or data == {"guest": False, "reason": "host-qmp-system-reset"}, data
        status = (await clients[1].execute("query-status"))["status"]
        assert status == ("paused" if command == "stop" else "running"), (command, status)


async def garbage(path):
    """Whatever a client sends before it goes, the next one is served."""
    for words in [
        b"",
        b"\x00\xff{]\n'",
        b'{"execute": "qmp_capabilities"}{"execute": "st',
        b'{"execute": "' + b"a" * (10 << 20),
        b"[" * 100000 + b"\n",
        bytes(range(256)) * 64,
    ]:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(words)
        try:
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass


async def main(server, listen):
    second = QMPClient("the machine connects")
    await second.start_server(listen)
    print("listening", flush=True)
    await second.accept()
    first = await connect(server)
    await queries(first)
    await queries(second)
    await errors(first)
    await life([first, second])
    await first.disconnect()
    await garbage(server)
    first = await connect(server)
    await errors(first)
    with second.listener("SHUTDOWN") as events:
        assert await first.execute("quit") == {}
        assert await event(events, "SHUTDOWN") == {"guest": False, "reason": "host-qmp-quit"}
    for client in [first, second]:
        try:
            await client.disconnect()
        except EOFError:
            pass


asyncio.run(main(*sys.argv[1:]))
