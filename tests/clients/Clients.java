// The Java client against a broker: java -cp 'libs/*' Clients.java MODE BROKER NAME COUNT
//
// seed    creates the topics NAME-in and NAME-out, and produces COUNT records, idempotently and compressed
// work    consumes, transforms and produces in transactions with its positions, until the group is at the
//         end; every third transaction is aborted. It may be killed at any moment, and run again.
// verify  a reader of committed records sees each of COUNT once, and no aborted one; a zombie is fenced

import java.time.Duration;
import java.util.*;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.serialization.*;

public class Clients {
    static String broker, source, sink, name;
    static int count;

    public static void main(String[] args) throws Exception {
        broker = args[1];
        name = args[2];
        source = name + "-in";
        sink = name + "-out";
        count = Integer.parseInt(args[3]);
        switch (args[0]) {
            case "seed" -> seed();
            case "work" -> work();
            case "verify" -> verify();
            default -> throw new IllegalArgumentException(args[0]);
        }
        System.out.println(args[0] + " ok");
    }

    static Map<String, Object> common() {
        return new HashMap<>(Map.of("bootstrap.servers", broker));
    }

    static KafkaProducer<String, String> producer(boolean transactional) {
        var config = common();
        config.put("compression.type", "gzip");
        if (transactional) {
            config.put("transactional.id", name);
            config.put("transaction.timeout.ms", 10000);
        }
        return new KafkaProducer<>(config, new StringSerializer(), new StringSerializer());
    }

    static KafkaConsumer<String, String> consumer(String group, String isolation) {
        var config = common();
        config.put("group.id", group);
        config.put("auto.offset.reset", "earliest");
        config.put("isolation.level", isolation);
        config.put("enable.auto.commit", false);
        config.put("session.timeout.ms", 6000);
        config.put("fetch.max.wait.ms", 50);
        config.put("max.poll.records", 20);
        return new KafkaConsumer<>(config, new StringDeserializer(), new StringDeserializer());
    }

    static void seed() throws Exception {
        try (var admin = Admin.create(common())) {
            var topics = List.of(new NewTopic(source, 3, (short) 1), new NewTopic(sink, 2, (short) 1));
            admin.createTopics(topics).all().get(20, TimeUnit.SECONDS);
        }
        try (var producer = producer(false)) {
            var sent = new ArrayList<java.util.concurrent.Future<RecordMetadata>>();
            for (int number = 0; number < count; number++) {
                sent.add(producer.send(new ProducerRecord<>(source, "" + number, "v" + number)));
            }
            for (var one : sent) one.get(30, TimeUnit.SECONDS);
        }
    }

    static boolean atEnd(KafkaConsumer<String, String> reader) {
        var all = new HashSet<TopicPartition>();
        for (int index = 0; index < 3; index++) all.add(new TopicPartition(source, index));
        var committed = reader.committed(all);
        for (var end : reader.endOffsets(all).entrySet()) {
            var at = committed.get(end.getKey());
            if ((at == null ? 0 : at.offset()) < end.getValue()) return false;
        }
        return true;
    }

    static void work() {
        var producer = producer(true);
        producer.initTransactions();
        var reader = consumer(name, "read_committed");
        reader.subscribe(List.of(source));
        int rounds = 0;
        while (!atEnd(reader)) {
            var records = reader.poll(Duration.ofSeconds(1));
            if (records.isEmpty()) continue;
            var outcome = ++rounds % 3 == 0 ? "aborted" : "ok";
            producer.beginTransaction();
            var positions = new HashMap<TopicPartition, OffsetAndMetadata>();
            for (var record : records) {
                producer.send(new ProducerRecord<>(sink, outcome + " " + record.value()));
                var of = new TopicPartition(record.topic(), record.partition());
                positions.put(of, new OffsetAndMetadata(record.offset() + 1));
            }
            System.out.println("in a transaction");
            try {
                producer.sendOffsetsToTransaction(positions, reader.groupMetadata());
                if (outcome.equals("ok")) {
                    producer.commitTransaction();
                    continue;
                }
                producer.flush();
            } catch (CommitFailedException gone) {
                // The group has gone on without us.
            }
            producer.abortTransaction();
            for (var at : reader.committed(reader.assignment()).entrySet()) {
                reader.seek(at.getKey(), at.getValue() == null ? 0 : at.getValue().offset());
            }
        }
        reader.close();
        producer.close();
    }

    static List<String> read(String isolation, int enough) {
        var values = new ArrayList<String>();
        try (var reader = consumer(UUID.randomUUID().toString(), isolation)) {
            reader.subscribe(List.of(sink));
            for (int quiet = 0; quiet < (values.size() >= enough ? 2 : 8); quiet++) {
                for (var record : reader.poll(Duration.ofSeconds(1))) {
                    values.add(record.value());
                    quiet = 0;
                }
            }
        }
        return values;
    }

    static void verify() {
        // Whoever was killed in a transaction is fenced, and it is aborted.
        try (var last = producer(true)) {
            last.initTransactions();
        }
        var values = read("read_committed", count);
        var expected = new ArrayList<String>();
        for (int number = 0; number < count; number++) expected.add("ok v" + number);
        Collections.sort(values);
        Collections.sort(expected);
        if (!values.equals(expected)) {
            throw new AssertionError(values.size() + " records, " + new HashSet<>(values).size() + " different");
        }
        if (read("read_uncommitted", count + 1).size() <= count) {
            throw new AssertionError("nothing was aborted: this says nothing");
        }
        var zombie = producer(true);
        zombie.initTransactions();
        producer(true).initTransactions();
        try {
            zombie.beginTransaction();
            zombie.send(new ProducerRecord<>(sink, "zombie"));
            zombie.commitTransaction();
            throw new AssertionError("a zombie has committed");
        } catch (ProducerFencedException | org.apache.kafka.common.errors.InvalidProducerEpochException fenced) {
            // As it should be.
        }
        System.exit(report());
    }

    /** The producers that are left open would wait for what they can no longer do. */
    static int report() {
        System.out.println("verify ok");
        System.out.flush();
        return 0;
    }
}
