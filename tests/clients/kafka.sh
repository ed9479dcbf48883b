#!/usr/bin/env bash
# Starts Apache Kafka, a single node, from its published jars: kafka.sh LIBS DIR PORT CONTROLLER_PORT
# Transactions of the second version (KIP-890), unless TRANSACTION_VERSION says otherwise. Ends with a signal.
set -euo pipefail
libs=$1 dir=$2 port=$3 controller=$4
mkdir -p "$dir"
cat > "$dir/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$dir/data
num.partitions=4
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.retention.ms=-1
transaction.max.timeout.ms=3600000
log.flush.interval.messages=${FLUSH_MESSAGES:-9223372036854775807}
EOF
export CLASSPATH="$libs/*"
quiet=-Dorg.slf4j.simpleLogger.defaultLogLevel=warn
id=$(java $quiet kafka.tools.StorageTool random-uuid | tail -1)
java $quiet kafka.tools.StorageTool format -t "$id" -c "$dir/server.properties" --standalone \
  --feature "transaction.version=${TRANSACTION_VERSION:-2}" > "$dir/format.log" 2>&1
exec java $quiet -Xms512m -Xmx1g -XX:+UseG1GC kafka.Kafka "$dir/server.properties"
