// Package logfile keeps what a workload writes to its standard streams.
//
// A log is a directory of files 00000001.json, 00000002.json, ... Each holds
// one JSON record a line, with Docker's keys:
//
//	{"log":"a line\n","stream":"stdout","time":"2026-11-21T10:00:00.123456789Z"}
//
// What is not UTF-8 is in "b64" instead of "log", so that every byte is kept. A
// line longer than 16 KiB is cut into records, of which all but the last have
// "partial":true, and so is a line whose end does not come within 100 ms: a
// prompt is seen when it is written.
//
// The writer appends to the last file and starts the next one when that is
// full; the oldest go. A record that was cut short by a crash is cut off by the
// next writer and passed over by readers. When the disk is full, records are
// left out, and the next one that fits is preceded by one with the stream "sbx"
// that says how many bytes are missing.
//
// Readers need no writer: they read files, as fast as they like, and hold
// nobody up. One that follows waits in inotify; it sees that there is no writer
// any more by the lock that a writer has on its file. One that is so slow that
// a file it has not begun is removed goes on at the oldest there is.
//
// # Limits
//
// By default 3 files of 10 MiB. A file exceeds its size by one record at most.
package logfile
