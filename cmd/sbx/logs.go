package main

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
)

func logsCommand(g *globals) *command {
	var (
		o                  sandbox.LogOptions
		follow, timestamps bool
		tail, since, until string
	)
	c := &command{
		Use: "logs [OPTIONS] SANDBOX", Short: "Show what a sandbox has written", Args: wantArgs(1, 1),
		Long:     "Its standard output and error go to those of this command.",
		Complete: completeBoxes(1, nil),
	}
	fs := c.Flags()
	fs.BoolVarP(&follow, "follow", "f", false, "go on until the sandbox has ended, or --until has come")
	fs.StringVarP(&tail, "tail", "n", "all", "the last `LINES` only")
	fs.StringVar(&since, "since", "", "from this `TIME` on: 2026-01-02T15:04:05Z, or 10m for ten minutes ago")
	fs.StringVar(&until, "until", "", "up to this `TIME`")
	fs.Bool("details", false, "no difference here: a line has no attributes")
	fs.BoolVarP(&timestamps, "timestamps", "t", false, "show the time of each line")
	c.RunE = withBox(g, func(ctx context.Context, c *command, s *sandbox.Sandbox, _ []string) (err error) {
		o.Follow = follow
		if o.Tail, err = parseTail(tail); err != nil {
			return err
		}
		now := time.Now()
		if o.Since, err = parseTime("--since", since, now); err != nil {
			return err
		}
		if o.Until, err = parseTime("--until", until, now); err != nil {
			return err
		}
		p := logPrinter{out: c.Out(), err: c.Err(), timestamps: timestamps, within: map[string]bool{}}
		if err := s.Logs(ctx, o, p.print); err != nil {
			return followed(ctx, err)
		}
		in, err := s.Inspect(ctx)
		if err != nil || in.LogLost == 0 {
			return nil // it may have been removed meanwhile
		}
		say(g.term, "sbx: note: %d bytes of its output could not be written to the log", in.LogLost)
		return nil
	})
	return c
}

// followed ends what the user has ended with an interrupt, which needs no message.
func followed(ctx context.Context, err error) error {
	var sig interrupted
	if err != nil && errors.As(context.Cause(ctx), &sig) {
		return exitStatus(128 + int(sig))
	}
	return err
}

// logPrinter writes records as they were written.
type logPrinter struct {
	out, err   io.Writer
	timestamps bool
	within     map[string]bool // by stream: the line goes on
	buf        []byte
}

func (p *logPrinter) print(r *sandbox.LogRecord) error {
	w := p.err
	if r.Stream == "stdout" {
		w = p.out
	}
	p.buf = p.buf[:0]
	if p.timestamps && !p.within[r.Stream] {
		// Docker's, with all nine digits, so that lines are aligned.
		p.buf = r.Time.UTC().AppendFormat(p.buf, "2006-01-02T15:04:05.000000000Z07:00 ")
	}
	p.within[r.Stream] = r.Partial
	p.buf = append(p.buf, r.Log...)
	_, err := w.Write(p.buf)
	return err
}

func parseTail(s string) (int, error) {
	if s == "all" || s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	switch {
	case err != nil:
		return 0, usagef("--tail %q: want a number of lines, or all", s)
	case n < 0:
		return 0, nil // all, as with Docker
	case n == 0:
		return -1, nil
	}
	return n, nil
}

// timeForms are those that Docker reads, without a zone in the local one.
var timeForms = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"}

func parseTime(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if sec, frac, _ := strings.Cut(s, "."); sec != "" {
		if n, err := strconv.ParseInt(sec, 10, 64); err == nil {
			nano, err := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
			if err == nil {
				return time.Unix(n, nano), nil
			}
		}
	}
	for _, f := range timeForms {
		if t, err := time.ParseInLocation(f, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, &usage{msg: flag + " " + strconv.Quote(s) + " is no time", fix: "write it as 2026-01-02T15:04:05Z, as seconds since 1970, or as 10m for ten minutes ago"}
}
