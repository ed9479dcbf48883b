"""librdkafka against a broker: clients.py MODE BROKER NAME COUNT

seed    creates the topics NAME-in and NAME-out, and produces COUNT records, idempotently and compressed
work    consumes, transforms and produces in transactions with its positions, until the group is at the end;
        every third transaction is aborted. It may be killed at any moment, and run again.
verify  a reader of committed records sees each of COUNT once, and no aborted one; a zombie is fenced
"""
import sys
import time
import uuid

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

mode, broker, name, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
SOURCE, SINK = name + "-in", name + "-out"
# There is one broker. When it is away, a re-bootstrap (KIP-899) would take the client's own record of it down with
# it, and librdkafka 2.16 never sends the offsets of the transaction that was open then.
COMMON = {
    "bootstrap.servers": broker,
    "metadata.recovery.strategy": "none",
    "reconnect.backoff.max.ms": 500,
}


def seed():
    topics = [NewTopic(SOURCE, 3, 1), NewTopic(SINK, 2, 1)]
    admin = AdminClient(COMMON)
    for created in admin.create_topics(topics).values():
        created.result(20)
    producer = Producer({**COMMON, "enable.idempotence": True, "compression.type": "gzip"})
    for number in range(count):
        producer.produce(SOURCE, key=str(number), value=f"v{number}")
        producer.poll(0)
    assert producer.flush(30) == 0, "not everything was acknowledged"


def consumer(group, isolation="read_committed"):
    return Consumer({
        **COMMON,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "isolation.level": isolation,
        "enable.auto.commit": False,
        "session.timeout.ms": 6000,
        "fetch.wait.max.ms": 50,
    })


def transactional():
    return Producer({**COMMON, "transactional.id": name, "transaction.timeout.ms": 10000})


def at_end(reader, partitions):
    try:
        for at in reader.committed(partitions, timeout=20):
            _, end = reader.get_watermark_offsets(TopicPartition(at.topic, at.partition), timeout=20)
            if max(at.offset, 0) < end:
                return False
        return True
    except KafkaException as error:
        # The broker is being started again: ask later.
        assert error.args[0].retriable() or error.args[0].code() == KafkaError._TRANSPORT, error
        return False


def work():
    producer = transactional()
    producer.init_transactions(30)
    reader = consumer(name)
    reader.subscribe([SOURCE])
    everything = [TopicPartition(SOURCE, index) for index in range(3)]
    rounds, deadline = 0, time.time() + 120
    while not at_end(reader, everything):
        assert time.time() < deadline, "it does not come to an end"
        records = [record for record in reader.consume(20, 1.0) if not record.error()]
        if not records:
            continue
        rounds += 1
        producer.begin_transaction()
        outcome = "aborted" if rounds % 3 == 0 else "ok"
        for record in records:
            producer.produce(SINK, value=f"{outcome} {record.value().decode()}")
        print("in a transaction", flush=True)
        try:
            positions = reader.position(reader.assignment())
            producer.send_offsets_to_transaction(positions, reader.consumer_group_metadata(), 20)
            if outcome == "ok":
                producer.commit_transaction(30)
                continue
            producer.flush(30)
        except KafkaException as error:
            # The group has gone on without us, perhaps.
            assert error.args[0].txn_requires_abort(), error
        producer.abort_transaction(30)
        for at in reader.committed(reader.assignment(), timeout=20):
            reader.seek(TopicPartition(at.topic, at.partition, max(at.offset, 0)))
    reader.close()


def read(isolation, enough):
    reader = consumer(uuid.uuid4().hex, isolation)
    reader.subscribe([SINK])
    values, quiet, deadline = [], 0, time.time() + 60
    while quiet < (2 if len(values) >= enough else 8) and time.time() < deadline:
        record = reader.poll(1.0)
        if record is None:
            quiet += 1
        elif not record.error():
            values.append(record.value().decode())
            quiet = 0
    reader.close()
    return values


def verify():
    # Whoever was killed in a transaction is fenced, and it is aborted.
    transactional().init_transactions(30)
    values = read("read_committed", count)
    expected = sorted(f"ok v{number}" for number in range(count))
    assert sorted(values) == expected, f"{len(values)} records, {len(set(values))} of them different"
    everything = read("read_uncommitted", count + 1)
    assert len(everything) > count, "nothing was aborted: this says nothing"
    old, new = transactional(), transactional()
    old.init_transactions(30)
    new.init_transactions(30)
    try:
        old.begin_transaction()
        old.produce(SINK, value="zombie")
        old.commit_transaction(30)
    except KafkaException as error:
        assert error.args[0].fatal(), error
    else:
        raise AssertionError("a zombie has committed")


{"seed": seed, "work": work, "verify": verify}[mode]()
print(mode, "ok", flush=True)
