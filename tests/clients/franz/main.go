// franz-go against a broker: franz MODE BROKER NAME COUNT
//
// seed    creates the topics NAME-in and NAME-out, and produces COUNT records, idempotently and compressed
// work    consumes, transforms and produces in transactions with its positions, until the group is at the end;
// every third transaction is aborted. It may be killed at any moment, and run again.
// verify  a reader of committed records sees each of COUNT once, and no aborted one; a zombie is fenced
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

var (
	broker, name, source, sink string
	count                      int
	background                 = context.Background()
)

func main() {
	mode := os.Args[1]
	broker, name = os.Args[2], os.Args[3]
	source, sink = name+"-in", name+"-out"
	count, _ = strconv.Atoi(os.Args[4])
	map[string]func(){"seed": seed, "work": work, "verify": verify}[mode]()
	fmt.Println(mode, "ok")
}

func must(err error) {
	if err != nil {
		log.Panic(err)
	}
}

func client(options ...kgo.Opt) *kgo.Client {
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(broker))...)
	must(err)
	return client
}

func seed() {
	client := client(kgo.ProducerBatchCompression(kgo.GzipCompression()))
	defer client.Close()
	admin := kadm.NewClient(client)
	for topic, partitions := range map[string]int32{source: 3, sink: 2} {
		_, err := admin.CreateTopic(background, partitions, 1, nil, topic)
		must(err)
	}
	for number := range count {
		record := kgo.KeyStringRecord(strconv.Itoa(number), fmt.Sprintf("v%d", number))
		record.Topic = source
		client.Produce(background, record, func(_ *kgo.Record, err error) { must(err) })
	}
	must(client.Flush(background))
}

// Whether all of the input is committed by the group.
func atEnd(admin *kadm.Client) bool {
	committed, err := admin.FetchOffsets(background, name)
	must(err)
	ends, err := admin.ListEndOffsets(background, source)
	must(err)
	must(ends.Error())
	done := true
	ends.Each(func(end kadm.ListedOffset) {
		at, ok := committed.Lookup(end.Topic, end.Partition)
		done = done && (end.Offset == 0 || ok && at.At >= end.Offset)
	})
	return done
}

func work() {
	client := client()
	defer client.Close()
	admin := kadm.NewClient(client)
	for !atEnd(admin) {
		// What a session says of its transaction is final: after an error comes another session.
		if err := transact(admin); err != nil {
			log.Print(err)
		}
	}
}

func transact(admin *kadm.Client) error {
	session, err := kgo.NewGroupTransactSession(
		kgo.SeedBrokers(broker),
		kgo.TransactionalID(name),
		kgo.TransactionTimeout(10*time.Second),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.RequireStableFetchOffsets(),
		kgo.ConsumerGroup(name),
		kgo.ConsumeTopics(source),
		kgo.SessionTimeout(6*time.Second),
		kgo.HeartbeatInterval(time.Second),
		kgo.FetchMaxWait(50*time.Millisecond),
	)
	must(err)
	defer session.Close()
	for rounds := 1; !atEnd(admin); {
		patience, cancel := context.WithTimeout(background, time.Second)
		records := session.PollRecords(patience, 20).Records()
		cancel()
		if len(records) == 0 {
			continue
		}
		outcome := "ok"
		if rounds++; rounds%3 == 0 {
			outcome = "aborted"
		}
		if err := session.Begin(); err != nil {
			return err
		}
		sent := kgo.AbortingFirstErrPromise(session.Client())
		for _, record := range records {
			value := fmt.Sprintf("%s %s", outcome, record.Value)
			session.Produce(background, &kgo.Record{Topic: sink, Value: []byte(value)}, sent.Promise())
		}
		fmt.Println("in a transaction")
		// An aborted record is to be in the log.
		if err := session.Client().Flush(background); err != nil {
			return err
		}
		commit := kgo.TransactionEndTry(sent.Err() == nil && outcome == "ok")
		if _, err := session.End(background, commit); err != nil {
			return err
		}
	}
	return nil
}

// The values of all records up to the end that such a reader has.
func read(isolation kgo.IsolationLevel, ends kadm.ListedOffsets) []string {
	reader := client(
		kgo.ConsumeTopics(sink),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(isolation),
		// A marker is at the end: it says how far a reader has come.
		kgo.KeepControlRecords(),
	)
	defer reader.Close()
	waiting := map[int32]int64{}
	ends.Each(func(end kadm.ListedOffset) {
		if end.Offset > 0 {
			waiting[end.Partition] = end.Offset
		}
	})
	patience, cancel := context.WithTimeout(background, time.Minute)
	defer cancel()
	var values []string
	for len(waiting) > 0 {
		fetches := reader.PollFetches(patience)
		must(fetches.Err())
		fetches.EachRecord(func(record *kgo.Record) {
			if record.Offset+1 >= waiting[record.Partition] {
				delete(waiting, record.Partition)
			}
			if !record.Attrs.IsControl() {
				values = append(values, string(record.Value))
			}
		})
	}
	return values
}

func verify() {
	// Who was killed in a transaction is fenced, and it is aborted.
	last := client(kgo.TransactionalID(name))
	defer last.Close()
	_, _, err := last.ProducerID(background)
	must(err)
	admin := kadm.NewClient(last)
	stable, err := admin.ListCommittedOffsets(background, sink)
	must(err)
	ends, err := admin.ListEndOffsets(background, sink)
	must(err)
	ends.Each(func(end kadm.ListedOffset) {
		if at, _ := stable.Lookup(end.Topic, end.Partition); at.Offset != end.Offset {
			log.Panicf("a transaction is left open: %v of %v", at, end)
		}
	})
	expected := make([]string, count)
	for number := range count {
		expected[number] = fmt.Sprintf("ok v%d", number)
	}
	values := read(kgo.ReadCommitted(), stable)
	slices.Sort(values)
	slices.Sort(expected)
	if !slices.Equal(values, expected) {
		log.Panicf("%d records, %d different", len(values), len(slices.Compact(values)))
	}
	if len(read(kgo.ReadUncommitted(), ends)) <= count {
		log.Panic("nothing was aborted: this says nothing")
	}
	successor := client(kgo.TransactionalID(name))
	defer successor.Close()
	_, _, err = successor.ProducerID(background)
	must(err)
	must(last.BeginTransaction())
	result := last.ProduceSync(background, &kgo.Record{Topic: sink, Value: []byte("zombie")})
	if result.FirstErr() == nil && last.EndTransaction(background, kgo.TryCommit) == nil {
		log.Panic("a zombie has committed")
	}
}
