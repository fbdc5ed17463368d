"""Sums the ERC-20 transfers of a chain by contract, exactly, whatever is killed when.

What is delivered to this consumer is pending until it is acknowledged. All work is done on what is
pending, and the sums and the acknowledgements move in one MULTI/EXEC: an entry is pending exactly as
long as it is not in the sums, so that a kill at any moment neither loses nor doubles it.

    CHAIN_ID=1 GROUP=sums CONSUMER=one python consumer.py [--finalized]

With --finalized, an entry waits until its block is final. Have one reader a group then: the entries
that take a block back must come to the consumer that holds the block's own.
"""

import argparse
import json
import os
import signal
import sys
import time

import msgpack
import redis

CHAIN_ID = os.environ.get("CHAIN_ID", "1")
GROUP = os.environ.get("GROUP", "sums")
CONSUMER = os.environ.get("CONSUMER", "one")
# A consumer that has not acknowledged for so long is dead; more than any piece of work may take.
CLAIM_IDLE_MS = int(os.environ.get("CLAIM_IDLE_MS", "60000"))
ARGUMENTS = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
ARGUMENTS.add_argument("--finalized", action="store_true", help="wait until a block is final")
FINALIZED_ONLY = ARGUMENTS.parse_args().finalized

EVENTS = f"events:{CHAIN_ID}"
BLOCKS = f"blocks:{{{EVENTS}}}"
SUMS = f"sums:{{{EVENTS}}}:{GROUP}"  # a hash; the braces put it beside its stream on a Cluster
BATCH = 1000
FIELDS = "chain_id block_number block_hash tx_hash tx_index log_index contract topics data timestamp removed".split()
TRANSFER = bytes.fromhex("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef")


def read_event(fields):
    """An entry of either encoding: numbers as int, hashes and data as bytes."""
    if b"e" in fields:
        return dict(zip(FIELDS, msgpack.unpackb(fields[b"e"])))
    event = {name: fields[name.encode()].decode() for name in FIELDS}
    for name in ("chain_id", "block_number", "tx_index", "log_index", "timestamp"):
        event[name] = int(event[name])
    for name in ("block_hash", "tx_hash", "contract", "data"):
        event[name] = bytes.fromhex(event[name][2:])
    event["topics"] = [bytes.fromhex(topic[2:]) for topic in json.loads(event["topics"])]
    event["removed"] = event["removed"] == "true"
    return event


def deliver(client, wait_ms=None):
    """Has new entries delivered to us: pending from now on. False if there are none."""
    return bool(client.xreadgroup(GROUP, CONSUMER, {EVENTS: ">"}, count=BATCH, block=wait_ms))


def pending(client):
    """What was delivered to us and is not acknowledged, oldest first: one batch, or all of it if
    entries wait until they are final."""
    entries, after = [], "0"
    while True:
        answer = client.xreadgroup(GROUP, CONSUMER, {EVENTS: after}, count=BATCH)
        page = answer[0][1]
        entries += page
        if len(page) < BATCH or not FINALIZED_ONLY:
            return entries
        after = page[-1][0]


def work(client, final):
    """Puts what is pending, up to the block `final` if there is one, into the sums."""
    with client.pipeline() as pipe:
        while True:
            # Whoever claims an entry from us and applies it changes the sums: then ours is off.
            pipe.watch(SUMS)
            ids, changes, lost = [], {}, 0
            for entry_id, fields in pending(pipe):
                if not fields:  # trimmed by retention before we came to it
                    ids.append(entry_id)
                    lost += 1
                    continue
                event = read_event(fields)
                if final is not None and event["block_number"] > final:
                    continue
                ids.append(entry_id)
                topics, data = event["topics"], event["data"]
                if len(topics) == 3 and topics[0] == TRANSFER and len(data) == 32:
                    contract = "0x" + event["contract"].hex()
                    value = int.from_bytes(data, "big")
                    value = -value if event["removed"] else value  # takes an earlier entry back
                    changes[contract] = changes.get(contract, 0) + value
            if not ids:
                return
            held = pipe.hmget(SUMS, list(changes)) if changes else []
            pipe.multi()
            for (contract, change), sum_ in zip(changes.items(), held):
                pipe.hset(SUMS, contract, str(int(sum_ or 0) + change))
            if lost:
                pipe.hincrby(SUMS, "lost", lost)
            pipe.xack(EVENTS, GROUP, *ids)
            try:
                pipe.execute()
            except redis.WatchError:
                pass  # look again at what is still ours


def claim_from_the_dead(client):
    """Makes ours what another has not acknowledged for too long."""
    start = "0-0"
    while True:
        start, _, trimmed = client.xautoclaim(
            EVENTS, GROUP, CONSUMER, CLAIM_IDLE_MS, start, count=BATCH
        )
        if trimmed:  # gone from the stream before anybody worked on them: a loss
            print(f"{len(trimmed)} entries were lost to retention", file=sys.stderr)
            client.hincrby(SUMS, "lost", len(trimmed))
        if start == b"0-0":
            return


def newest_final_block(client):
    """From the chain's markers; -1 while no block is final."""
    before = "+"
    while True:
        page = client.xrevrange(BLOCKS, before, "-", count=BATCH)
        for marker_id, marker in page:
            if marker[b"op"] == b"finalized":
                return int(marker[b"number"])
            before = f"({marker_id.decode()}"
        if len(page) < BATCH:
            return -1


def one_round(client, done):
    """Returns the block up to which pending entries were worked on; `done` is the round's before."""
    claim_from_the_dead(client)
    deliver(client, wait_ms=1000)
    final = None
    if FINALIZED_ONLY:
        final = newest_final_block(client)
        # What took a block back stands before the marker that made its successor final.
        while deliver(client):
            pass
    if final is None or final != done:
        work(client, final)
    return final


def main():
    stopping = False

    def stop(*_):
        nonlocal stopping
        stopping = True

    # The round ends first: what was delivered is worked on.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")
    client = redis.Redis.from_url(url, protocol=2, socket_timeout=10)
    while not stopping:
        try:
            try:
                client.xgroup_create(EVENTS, GROUP, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            done = None
            while not stopping:
                done = one_round(client, done)
        except redis.RedisError as error:  # also one that is full, or a replica now
            print(f"waiting for Redis: {error}", file=sys.stderr)
            time.sleep(1)


if __name__ == "__main__":
    main()
