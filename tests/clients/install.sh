#!/usr/bin/env bash
# Brings what the tests with other people's clients need into a folder, unless it is there: install.sh DIR
#   DIR/venv   Python with librdkafka's binding
#   DIR/libs   the jars of Apache Kafka and of its Java client
# and, from Debian's packages, whatever is missing of Java, Maven, Python's venv and kcat.
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
exec 9> "$dir/lock"
flock 9

packages=()
command -v java > /dev/null || packages+=(openjdk-17-jdk-headless)
command -v mvn > /dev/null || packages+=(maven)
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

if ! cmp -s "$here/pom.xml" "$dir/libs/pom.xml"; then
  rm -rf "$dir/libs"
  mvn -B -q -f "$here/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$dir/libs"
  cp "$here/pom.xml" "$dir/libs/pom.xml"
fi
