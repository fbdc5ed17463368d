"""Sums the ERC-20 transfers of a chain by contract, exactly once each, even if killed at any moment.

An entry delivered to this consumer is pending until it is acknowledged. Only pending entries are
processed, and the sums and the acknowledgements are written in one MULTI/EXEC: an entry is pending
exactly as long as it is not in the sums, so that a kill neither loses it nor counts it twice.

    CHAIN_ID=1 GROUP=sums CONSUMER=one python consumer.py [--finalized]

With --finalized, an entry waits until its block is final. Use one reader per group in that case: the
entries that take a block back must go to the consumer that holds the block's entries.
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
# A consumer that has not acknowledged for this long is considered dead. Must exceed the time that any
# batch takes.
CLAIM_IDLE_MS = int(os.environ.get("CLAIM_IDLE_MS", "60000"))
ARGUMENTS = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
ARGUMENTS.add_argument("--finalized", action="store_true", help="wait until a block is final")
FINALIZED_ONLY = ARGUMENTS.parse_args().finalized

EVENTS = f"events:{CHAIN_ID}"
BLOCKS = f"blocks:{{{EVENTS}}}"
SUMS = f"sums:{{{EVENTS}}}:{GROUP}"  # a hash; the braces put it in its stream's slot on a Cluster
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
    """Has new entries delivered to us, which makes them pending. False if there are none."""
    return bool(client.xreadgroup(GROUP, CONSUMER, {EVENTS: ">"}, count=BATCH, block=wait_ms))


def pending(client):
    """Entries delivered to us and not acknowledged, oldest first: one batch, or all of them if entries
    wait until they are final."""
    entries, after = [], "0"
    while True:
        answer = client.xreadgroup(GROUP, CONSUMER, {EVENTS: after}, count=BATCH)
        page = answer[0][1]
        entries += page
        if len(page) < BATCH or not FINALIZED_ONLY:
            return entries
        after = page[-1][0]


def work(client, final):
    """Adds pending entries to the sums, only up to block `final` if that is set."""
    with client.pipeline() as pipe:
        while True:
            # If another consumer claims an entry of ours and applies it, the sums change and this
            # transaction fails.
            pipe.watch(SUMS)
            ids, changes, lost = [], {}, 0
            for entry_id, fields in pending(pipe):
                if not fields:  # trimmed by retention before we processed it
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
                    value = -value if event["removed"] else value  # undoes an earlier entry
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
                pass  # check again what is still ours


def claim_from_dead_consumers(client):
    """Takes over entries that another consumer has not acknowledged for too long."""
    start = "0-0"
    while True:
        start, _, trimmed = client.xautoclaim(
            EVENTS, GROUP, CONSUMER, CLAIM_IDLE_MS, start, count=BATCH
        )
        if trimmed:  # removed from the stream before anyone processed them: a loss
            print(f"{len(trimmed)} entries were lost to retention", file=sys.stderr)
            client.hincrby(SUMS, "lost", len(trimmed))
        if start == b"0-0":
            return


def newest_final_block(client):
    """Read from the chain's markers; -1 while no block is final."""
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
    """Returns the block up to which pending entries were processed; `done` is the previous round's."""
    claim_from_dead_consumers(client)
    deliver(client, wait_ms=1000)
    final = None
    if FINALIZED_ONLY:
        final = newest_final_block(client)
        # The entries that took a block back precede the marker that made its successor final.
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

    # The current round is finished first: what was delivered is processed.
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
        except redis.RedisError as error:  # including a full Redis, or a master that became a replica
            print(f"waiting for Redis: {error}", file=sys.stderr)
            time.sleep(1)


if __name__ == "__main__":
    main()
