package logfile

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"
)

// maxPiece is how much of a line is in one record, as with Docker.
const maxPiece = 16 << 10

// StreamNotice is the stream of records that are not the workload's.
const StreamNotice = "sbx"

// Record is a line, or a piece of one.
type Record struct {
	Stream  string // stdout, stderr or StreamNotice
	Time    time.Time
	Log     []byte // with its newline, if it has one
	Partial bool   // the next record of the stream goes on with the same line
}

// stored is a record as it is in the file.
type stored struct {
	Log     *string   `json:"log,omitempty"`
	B64     []byte    `json:"b64,omitempty"`
	Stream  string    `json:"stream"`
	Time    time.Time `json:"time"`
	Partial bool      `json:"partial,omitempty"`
}

// encode appends the record's line. It is what takes the time when a workload
// writes much, so it does without reflection.
func encode(b []byte, r *Record) []byte {
	if utf8.Valid(r.Log) {
		b = append(b, `{"log":"`...)
		b = appendText(b, r.Log)
	} else {
		b = append(b, `{"b64":"`...)
		b = base64.StdEncoding.AppendEncode(b, r.Log)
	}
	b = append(b, `","stream":"`...)
	b = append(b, r.Stream...)
	b = append(b, `","time":"`...)
	b = r.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	if r.Partial {
		b = append(b, `,"partial":true`...)
	}
	return append(b, "}\n"...)
}

// appendText appends UTF-8 as it is in a JSON string.
func appendText(b, text []byte) []byte {
	from := 0
	for i, c := range text {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, text[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = fmt.Appendf(b, "\\u%04x", c)
		}
	}
	return append(b, text[from:]...)
}

func decode(line []byte) (*Record, error) {
	var s stored
	if err := json.Unmarshal(line, &s); err != nil {
		return nil, fmt.Errorf("log record: %w", err)
	}
	r := &Record{Stream: s.Stream, Time: s.Time, Partial: s.Partial, Log: s.B64}
	if s.Log != nil {
		r.Log = []byte(*s.Log)
	}
	return r, nil
}

// cut returns how much of b fits into one record: a line, or a piece that does
// not end within a character.
func cut(b []byte) int {
	if n := bytes.IndexByte(b[:min(len(b), maxPiece)], '\n'); n >= 0 {
		return n + 1
	}
	if len(b) <= maxPiece {
		return len(b)
	}
	for n := maxPiece; n > maxPiece-utf8.UTFMax; n-- {
		if utf8.RuneStart(b[n]) {
			return n
		}
	}
	return maxPiece // not UTF-8
}
