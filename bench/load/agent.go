package load

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Request is one line to an agent. Fields that an operation does not use are zero.
type Request struct {
	Op      string        // a key of operations
	Addr    string        // host:port of the server
	Streams int           // bulk, connect: how many at once
	Down    bool          // bulk, udp: the server sends
	Warm    time.Duration // before the window
	For     time.Duration // the window; flows: the time to open them in
	Rate    float64       // udp: datagrams per second; zero means as fast as possible
	Size    int           // udp: bytes of payload
	Count   int           // flows: how many
	Busy    bool          // flows: move data on all that are open
	Args    []string      // exec: the command
}

// Reply is one line from an agent.
type Reply struct {
	Err     string
	Bytes   int64         // received in the window
	Total   int64         // received in all, warm-up included
	Elapsed time.Duration // the window as it was
	Rate    float64       // bulk: bits per second; else operations per second
	Sent    int64         // udp: datagrams offered
	Got     int64         // udp: datagrams received; others: operations
	Failed  int64         // connect: attempts that failed
	P50     time.Duration
	P99     time.Duration
	Stuck   string // bulk: why the path is of no more use
	Output  string // exec
}

var operations = map[string]func(*agent, Request) (Reply, error){
	"ping":     func(*agent, Request) (Reply, error) { return Reply{}, nil },
	"serve":    (*agent).serve,
	"bulk":     (*agent).bulk,
	"pingpong": (*agent).pingpong,
	"connect":  (*agent).connect,
	"udp":      (*agent).udp,
	"dns":      (*agent).dns,
	"servedns": (*agent).serveDNS,
	"flows":    (*agent).openFlows,
	"noflows":  (*agent).closeFlows,
	"exec":     (*agent).exec,
}

type agent struct {
	flows flowSet
}

// Run answers requests from r on w until r ends.
func Run(r io.Reader, w io.Writer) error {
	a := new(agent)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	out := json.NewEncoder(w)
	for lines.Scan() {
		var req Request
		var rep Reply
		err := json.Unmarshal(lines.Bytes(), &req)
		if err == nil {
			if op, ok := operations[req.Op]; ok {
				rep, err = op(a, req)
			} else {
				err = fmt.Errorf("no operation %q", req.Op)
			}
		}
		if err != nil {
			rep.Err = err.Error()
		}
		if err := out.Encode(rep); err != nil {
			return err
		}
	}
	return lines.Err()
}
