#!/usr/bin/env bash
# Brings what the tests with other people's clients need into a folder, unless it is there: install.sh DIR
#   DIR/venv     Python with librdkafka's binding
#   DIR/libs     the jars of Apache Kafka, its tools, its Java client and Kafka Streams
#   DIR/flink    the jars of Flink, and of its connector with the Java client that it wants
#   DIR/classes  the programs over them, compiled
#   DIR/franz    the program over franz-go, compiled
# and, from Debian's packages, whatever is missing of Java, Maven, Go, Python's venv and kcat.
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
exec 9> "$dir/lock"
flock 9

packages=()
command -v javac > /dev/null || packages+=(openjdk-17-jdk-headless)
command -v mvn > /dev/null || packages+=(maven)
command -v go > /dev/null || packages+=(golang-go)
command -v kcat > /dev/null || packages+=(kcat)
python3 -c 'import venv, ensurepip' 2> /dev/null || packages+=(python3-venv)
if [ ${#packages[@]} -gt 0 ]; then
  as_root=$([ "$(id -u)" = 0 ] || echo sudo)
  $as_root apt-get update -q
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"
fi

librdkafka=confluent-kafka==2.16.1
if [ "$(cat "$dir/venv/what" 2> /dev/null)" != "$librdkafka" ]; then
  rm -rf "$dir/venv"
  python3 -m venv "$dir/venv"
  "$dir/venv/bin/pip" install -q "$librdkafka"
  echo "$librdkafka" > "$dir/venv/what"
fi

jars() { # POM DIR
  if ! cmp -s "$1" "$2/pom.xml"; then
    rm -rf "$2" "$dir/classes"
    mvn -B -q -f "$1" dependency:copy-dependencies "-DoutputDirectory=$2"
    cp "$1" "$2/pom.xml"
  fi
}
jars "$here/pom.xml" "$dir/libs"
jars "$here/flink.xml" "$dir/flink"

classes() { # LIBS NAME…
  local libs=$1 name
  shift
  for name; do
    if ! cmp -s "$here/$name.java" "$dir/classes/$name.java"; then
      mkdir -p "$dir/classes"
      javac -d "$dir/classes" -cp "$libs/*" "$here/$name.java"
      cp "$here/$name.java" "$dir/classes/$name.java"
    fi
  done
}
classes "$dir/libs" Counts Streams Tools
classes "$dir/flink" Flink

# Go knows what has changed since.
go build -C "$here/franz" -o "$dir/franz" .
