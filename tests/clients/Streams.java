// Kafka Streams with exactly_once_v2: java -cp 'libs/*' Streams.java BROKER NAME STATE_DIR
//
// Reads the numbers of NAME-in, counts and sums them by their remainder (a repartition topic, and a store with its
// changelog), and writes each new count to NAME-out, until its group is at the end. Says `busy` now and then, in the
// middle of a transaction; may be killed at any moment, and run again.

import java.time.Duration;
import java.util.*;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RetriableException;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.*;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.*;
import org.apache.kafka.streams.state.KeyValueStore;

public class Streams {
    static final int KEYS = 40;
    static int worked;

    public static void main(String[] args) throws Exception {
        String broker = args[0], name = args[1], dir = args[2];
        var config = new Properties();
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, name);
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, broker);
        config.put(StreamsConfig.STATE_DIR_CONFIG, dir);
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        config.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        config.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        // Each count is a record of the output, and not only the last one of a transaction.
        config.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
        // Whoever is killed is in a transaction, and some of it is in the log.
        config.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1000);
        config.put(StreamsConfig.producerPrefix("linger.ms"), 0);
        // What was repartitioned and is committed is deleted at once (DeleteRecords).
        config.put(StreamsConfig.REPARTITION_PURGE_INTERVAL_MS_CONFIG, 1000);
        // Who was killed is missed soon; its transaction ends soon, if nobody comes who has its state directory.
        config.put(StreamsConfig.consumerPrefix("session.timeout.ms"), 6000);
        config.put(StreamsConfig.consumerPrefix("heartbeat.interval.ms"), 1000);
        config.put(StreamsConfig.consumerPrefix("max.poll.records"), 200);
        config.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        config.put(StreamsConfig.producerPrefix("transaction.timeout.ms"), 6000);

        // A changelog that is not compacted and keeps everything: it restores the same store, only more slowly.
        var whole = Map.of("cleanup.policy", "delete", "retention.ms", "-1");
        var store = Materialized.<String, String, KeyValueStore<Bytes, byte[]>>as("counts")
            .withKeySerde(Serdes.String())
            .withValueSerde(Serdes.String())
            .withLoggingEnabled(whole);
        var builder = new StreamsBuilder();
        builder.<String, String>stream(name + "-in")
            .selectKey((key, number) -> "" + Integer.parseInt(number) % KEYS)
            .repartition(Repartitioned.<String, String>as("by-remainder").withNumberOfPartitions(2))
            .groupByKey()
            .aggregate(() -> "0 0", (key, number, value) -> add(value, Long.parseLong(number)), store)
            .toStream()
            .to(name + "-out");

        var streams = new KafkaStreams(builder.build(config), config);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
        try (var admin = Admin.create(Map.of("bootstrap.servers", broker))) {
            while (!atEnd(admin, name)) Thread.sleep(200);
        }
        if (!streams.close(Duration.ofSeconds(60))) throw new AssertionError("it does not close");
        System.out.println("work ok");
    }

    static String add(String value, long number) {
        if (++worked % 500 == 0) System.out.println("busy");
        // There is to be a middle: some transactions before the end.
        if (worked % 20 == 0) LockSupport.parkNanos(1_000_000);
        var parts = value.split(" ");
        return (Long.parseLong(parts[0]) + 1) + " " + (Long.parseLong(parts[1]) + number);
    }

    /** Whether all of the input, and all that was repartitioned, is committed. */
    static boolean atEnd(Admin admin, String name) throws Exception {
        var wanted = new HashMap<TopicPartition, OffsetSpec>();
        for (int index = 0; index < 3; index++) wanted.put(new TopicPartition(name + "-in", index), OffsetSpec.latest());
        var repartitioned = name + "-by-remainder-repartition";
        for (int index = 0; index < 2; index++) wanted.put(new TopicPartition(repartitioned, index), OffsetSpec.latest());
        try {
            // In this order: what of the input is committed by now is before the end of what was repartitioned.
            var committed = admin.listConsumerGroupOffsets(name).partitionsToOffsetAndMetadata().get();
            var ends = admin.listOffsets(wanted).all().get();
            for (var end : ends.entrySet()) {
                var at = committed.get(end.getKey());
                if ((at == null ? 0 : at.offset()) < end.getValue().offset()) return false;
            }
            return true;
        } catch (ExecutionException error) {
            // The repartition topic is yet to be created, or the broker is being started again: ask later.
            if (error.getCause() instanceof RetriableException) return false;
            throw error;
        }
    }
}
