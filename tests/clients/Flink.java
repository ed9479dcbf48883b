// Flink with its exactly-once sink for Kafka: java -cp 'libs/*:classes' Flink BROKER NAME CHECKPOINTS STRATEGY
//
// Reads the numbers of NAME-in, counts and sums them by their remainder in keyed state, and writes each new count to
// NAME-out in transactions that are committed with a checkpoint; ends when all of the input is. Goes on from the
// newest checkpoint in the folder CHECKPOINTS, if there is one. STRATEGY is how the sink names its transactions:
// INCREMENTING or POOLING. Says `prepared` when a checkpoint is complete whose transactions are not committed yet, and
// `busy` now and then; may be killed at any moment, and run again.

import java.nio.file.*;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.ExecutionException;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.common.serialization.*;
import org.apache.flink.api.common.state.*;
import org.apache.flink.api.common.typeinfo.*;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.configuration.*;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.core.execution.SavepointFormatType;
import org.apache.flink.connector.kafka.sink.*;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.runtime.state.*;
import org.apache.flink.streaming.api.checkpoint.CheckpointedFunction;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.RetriableException;

public class Flink {
    static final int KEYS = 40;

    public static void main(String[] args) throws Exception {
        String broker = args[0], name = args[1];
        var checkpoints = Path.of(args[2]);
        var config = new Configuration();
        config.set(CheckpointingOptions.CHECKPOINTING_INTERVAL, Duration.ofMillis(400));
        config.set(CheckpointingOptions.CHECKPOINT_STORAGE, "filesystem");
        config.set(CheckpointingOptions.CHECKPOINTS_DIRECTORY, checkpoints.toUri().toString());
        config.set(CheckpointingOptions.EXTERNALIZED_CHECKPOINT_RETENTION,
            ExternalizedCheckpointRetention.RETAIN_ON_CANCELLATION);
        // While the broker is away; what does not mend itself is to be seen.
        config.set(RestartStrategyOptions.RESTART_STRATEGY, "fixed-delay");
        config.set(RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_ATTEMPTS, 20);
        config.set(RestartStrategyOptions.RESTART_STRATEGY_FIXED_DELAY_DELAY, Duration.ofMillis(500));
        var newest = newest(checkpoints);
        System.err.println("from " + newest);
        if (newest != null) config.set(StateRecoveryOptions.SAVEPOINT_PATH, newest.toUri().toString());

        var source = KafkaSource.<String>builder()
            .setBootstrapServers(broker)
            .setTopics(name + "-in")
            .setGroupId(name)
            .setStartingOffsets(OffsetsInitializer.earliest())
            .setValueOnlyDeserializer(new SimpleStringSchema())
            .setProperty("max.poll.records", "100")
            .build();
        var sink = KafkaSink.<Tuple2<String, String>>builder()
            .setBootstrapServers(broker)
            .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
            .setTransactionalIdPrefix(name)
            .setTransactionNamingStrategy(TransactionNamingStrategy.valueOf(args[3]))
            .setProperty("transaction.timeout.ms", "600000")
            .setRecordSerializer(KafkaRecordSerializationSchema.<Tuple2<String, String>>builder()
                .setTopic(name + "-out")
                .setKeySerializationSchema(new Key())
                .setValueSerializationSchema(new Value())
                .build())
            .build();

        var flow = StreamExecutionEnvironment.createLocalEnvironment(2, config);
        flow.fromSource(source, WatermarkStrategy.noWatermarks(), "numbers").uid("numbers")
            .map(new Paced()).uid("paced")
            .keyBy(number -> "" + Integer.parseInt(number) % KEYS)
            .process(new Count(checkpoints)).uid("count").returns(Types.TUPLE(Types.STRING, Types.STRING))
            .sinkTo(sink).uid("counts");
        var job = flow.executeAsync(name);
        try (var admin = Admin.create(Map.of("bootstrap.servers", broker))) {
            while (!atEnd(admin, name)) {
                // It goes on by itself after a failure; this it cannot survive.
                if (job.getJobStatus().get().isGloballyTerminalState()) throw new AssertionError("the job has ended");
                Thread.sleep(200);
            }
        }
        // With a last checkpoint, and its transactions committed.
        job.stopWithSavepoint(false, checkpoints.resolve("stopped").toUri().toString(),
            SavepointFormatType.CANONICAL).get();
        System.out.println("work ok");
    }

    /** Whether all of the input is in a checkpoint that is complete: after it the source commits its positions. */
    static boolean atEnd(Admin admin, String name) throws Exception {
        var wanted = new HashMap<TopicPartition, OffsetSpec>();
        for (int index = 0; index < 3; index++) wanted.put(new TopicPartition(name + "-in", index), OffsetSpec.latest());
        try {
            var committed = admin.listConsumerGroupOffsets(name).partitionsToOffsetAndMetadata().get();
            for (var end : admin.listOffsets(wanted).all().get().entrySet()) {
                var at = committed.get(end.getKey());
                if (at == null || at.offset() < end.getValue().offset()) return false;
            }
            return true;
        } catch (ExecutionException error) {
            // The broker is being started again: ask later.
            if (error.getCause() instanceof RetriableException) return false;
            throw error;
        }
    }

    static class Key implements SerializationSchema<Tuple2<String, String>> {
        @Override
        public byte[] serialize(Tuple2<String, String> count) {
            return count.f0.getBytes();
        }
    }

    static class Value implements SerializationSchema<Tuple2<String, String>> {
        @Override
        public byte[] serialize(Tuple2<String, String> count) {
            return count.f1.getBytes();
        }
    }

    /** Of all runs: their numbers go on. A checkpoint is whole when its metadata is there. */
    static Path newest(Path checkpoints) throws Exception {
        try (var files = Files.walk(checkpoints)) {
            return files.filter(file -> file.endsWith("_metadata"))
                .map(Path::getParent)
                .max(Comparator.comparing(folder -> Integer.parseInt(folder.getFileName().toString().substring(4))))
                .orElse(null);
        }
    }

    /** Lets so many numbers pass between two checkpoints, and more only slowly: there is to be a middle. */
    static class Paced extends RichMapFunction<String, String> implements CheckpointedFunction {
        static final int SOME = 800;
        transient int passed;

        @Override
        public void initializeState(FunctionInitializationContext context) {}

        @Override
        public void snapshotState(FunctionSnapshotContext context) {
            passed = 0;
        }

        @Override
        public String map(String number) throws Exception {
            if (++passed > SOME) Thread.sleep(2);
            return number;
        }
    }

    static class Count extends KeyedProcessFunction<String, String, Tuple2<String, String>>
        implements CheckpointedFunction {
        final String checkpoints;
        transient ValueState<Tuple2<Integer, Long>> state;
        transient int worked;
        /** The newest checkpoint that this task has its part in, until it is complete. */
        transient Path begun;

        Count(Path checkpoints) {
            this.checkpoints = checkpoints.toString();
        }

        @Override
        public void initializeState(FunctionInitializationContext context) {
            TypeInformation<Tuple2<Integer, Long>> type = Types.TUPLE(Types.INT, Types.LONG);
            state = context.getKeyedStateStore().getState(new ValueStateDescriptor<>("count", type));
        }

        @Override
        public void snapshotState(FunctionSnapshotContext context) {
            var job = getRuntimeContext().getJobInfo().getJobId().toString();
            begun = Path.of(checkpoints, job, "chk-" + context.getCheckpointId(), "_metadata");
        }

        @Override
        public void processElement(String number, Context context, Collector<Tuple2<String, String>> out)
            throws Exception {
            if (begun != null) hold();
            var before = state.value();
            if (before == null) before = Tuple2.of(0, 0L);
            var after = Tuple2.of(before.f0 + 1, before.f1 + Long.parseLong(number));
            state.update(after);
            out.collect(Tuple2.of(context.getCurrentKey(), after.f0 + " " + after.f1));
            if (++worked % 200 == 0) System.out.println("busy");
        }

        /** The sink is of this task, too: while this one is held, it is not told that its checkpoint is complete. */
        void hold() throws Exception {
            for (int waited = 0; waited < 200; waited++) {
                if (Files.exists(begun)) {
                    System.out.println("prepared");
                    Thread.sleep(200);
                    break;
                }
                Thread.sleep(10);
            }
            begun = null;
        }
    }
}
