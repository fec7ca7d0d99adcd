package events

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/rootless-sbx/sbx/sandbox/internal/seqfile"
)

// ReadOptions say which events are wanted; the zero value means all there are.
type ReadOptions struct {
	// Follow waits for more, until the context ends or Until has come.
	Follow bool
	// New passes over what there is already.
	New bool
	// Since and Until: zero means no bound.
	Since, Until time.Time
}

// errUntil ends the wait at ReadOptions.Until.
var errUntil = errors.New("the end that was asked for")

// Read calls fn for each event in the order in which they were written down. It
// returns fn's error, and with Follow the context's cause when that ends.
func (j *Journal) Read(ctx context.Context, o ReadOptions, fn func(*Event) error) error {
	if !o.Until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, o.Until, errUntil)
		defer cancel()
	}
	var watch *seqfile.Watch
	if o.Follow {
		if err := os.MkdirAll(j.Dir, 0o700); err != nil {
			return err
		}
		var err error
		if watch, err = seqfile.NewWatch(ctx, j.Dir); err != nil {
			return err
		}
		defer watch.Close()
	}
	r := &seqfile.Reader{Dir: j.Dir, MaxLine: 4 * maxLine}
	defer r.Close()
	if o.New {
		if err := r.SeekEnd(); err != nil {
			return err
		}
	}
	ended := func() error {
		if err := context.Cause(ctx); !errors.Is(err, errUntil) {
			return err
		}
		return nil
	}
	for {
		over := ctx.Err() != nil // before reading: what came until then is read
		err := r.Drain(func(line []byte) error {
			if err := ended(); err != nil {
				return err
			}
			e, ok := decode(line)
			if !ok { // cut short
				return nil
			}
			at := time.Unix(0, e.TimeNano)
			if at.Before(o.Since) || !o.Until.IsZero() && at.After(o.Until) {
				return nil
			}
			return fn(e)
		})
		if err != nil || !o.Follow {
			return err
		}
		if over {
			return ended()
		}
		if err := watch.Wait(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}
