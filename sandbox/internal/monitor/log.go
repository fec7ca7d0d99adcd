package monitor

import (
	"bytes"
	"log/slog"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// logWriter sends each record to the caller, whose logger it is for: the monitor
// has no standard error of its own. What is logged after the caller has gone is
// for nobody.
type logWriter struct{ caller *wire.Conn }

func (w logWriter) Write(line []byte) (int, error) {
	return len(line), w.caller.Send(proto.MsgLog, proto.Notice{Text: string(bytes.TrimSpace(line))})
}

// plain leaves out the time, which the caller's logger adds.
func plain(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
