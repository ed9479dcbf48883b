// What a program that counts exactly once is given, and what must come out: java -cp 'libs/*' Counts.java MODE
// BROKER NAME COUNT
//
// seed    creates the topics NAME-in and NAME-out, and produces COUNT numbers, 0 and on, each with itself as key
// verify  a reader of committed records sees of each of KEYS keys (a number's remainder) its counts 1, 2, 3 …, each
//         once and in this order, the last with the sum of all numbers of that key; records of transactions that
//         were killed are there, for readers who want them; and no transaction is left open

import java.time.Duration;
import java.util.*;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.serialization.*;

public class Counts {
    static final int KEYS = 40;
    static String broker, source, sink;
    static int count;

    public static void main(String[] args) throws Exception {
        broker = args[1];
        source = args[2] + "-in";
        sink = args[2] + "-out";
        count = Integer.parseInt(args[3]);
        switch (args[0]) {
            case "seed" -> seed();
            case "verify" -> verify();
            default -> throw new IllegalArgumentException(args[0]);
        }
        System.out.println(args[0] + " ok");
    }

    static Map<String, Object> common() {
        return new HashMap<>(Map.of("bootstrap.servers", broker));
    }

    static void seed() throws Exception {
        try (var admin = Admin.create(common())) {
            var topics = List.of(new NewTopic(source, 3, (short) 1), new NewTopic(sink, 2, (short) 1));
            admin.createTopics(topics).all().get(20, TimeUnit.SECONDS);
        }
        var text = new StringSerializer();
        try (var producer = new KafkaProducer<String, String>(common(), text, text)) {
            var sent = new ArrayList<Future<RecordMetadata>>();
            for (int number = 0; number < count; number++) {
                sent.add(producer.send(new ProducerRecord<>(source, "" + number, "" + number)));
            }
            for (var one : sent) one.get(60, TimeUnit.SECONDS);
        }
    }

    static KafkaConsumer<String, String> reader(IsolationLevel isolation) {
        var config = common();
        config.put("isolation.level", isolation.toString().toLowerCase(Locale.ROOT));
        var reader = new KafkaConsumer<String, String>(config, new StringDeserializer(), new StringDeserializer());
        var all = List.of(new TopicPartition(sink, 0), new TopicPartition(sink, 1));
        reader.assign(all);
        reader.seekToBeginning(all);
        return reader;
    }

    /** All records up to the end that such a reader has. */
    static List<ConsumerRecord<String, String>> read(IsolationLevel isolation) {
        var records = new ArrayList<ConsumerRecord<String, String>>();
        try (var reader = reader(isolation)) {
            var ends = reader.endOffsets(reader.assignment());
            while (ends.entrySet().stream().anyMatch(end -> reader.position(end.getKey()) < end.getValue())) {
                reader.poll(Duration.ofSeconds(1)).forEach(records::add);
            }
        }
        return records;
    }

    static void verify() throws Exception {
        var counts = new HashMap<String, List<Integer>>();
        var sums = new HashMap<String, Long>();
        for (var record : read(IsolationLevel.READ_COMMITTED)) {
            var value = record.value().split(" ");
            counts.computeIfAbsent(record.key(), key -> new ArrayList<>()).add(Integer.parseInt(value[0]));
            sums.put(record.key(), Long.parseLong(value[1]));
        }
        var wrong = new ArrayList<String>();
        for (int key = 0; key < KEYS; key++) {
            var expected = new ArrayList<Integer>();
            long sum = 0;
            for (int number = key; number < count; number += KEYS) {
                expected.add(expected.size() + 1);
                sum += number;
            }
            var seen = counts.getOrDefault("" + key, List.of());
            if (!seen.equals(expected)) {
                wrong.add("key " + key + ": " + seen.size() + " counts, " + new HashSet<>(seen).size()
                    + " of them different, where there should be " + expected.size());
            } else if (sums.get("" + key) != sum) {
                wrong.add("key " + key + ": the sum is " + sums.get("" + key) + ", not " + sum);
            }
        }
        if (!wrong.isEmpty()) throw new AssertionError(String.join("\n", wrong));
        if (read(IsolationLevel.READ_UNCOMMITTED).size() <= count) {
            throw new AssertionError("no transaction was aborted: this says nothing");
        }
        try (var committed = reader(IsolationLevel.READ_COMMITTED);
            var all = reader(IsolationLevel.READ_UNCOMMITTED)) {
            var stable = committed.endOffsets(committed.assignment());
            var ends = all.endOffsets(all.assignment());
            if (!stable.equals(ends)) {
                throw new AssertionError("a transaction is left open: stable up to " + stable + " of " + ends);
            }
        }
    }
}
